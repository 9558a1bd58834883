//! `tensorboard/events.out.tfevents.*`: TensorBoard event files, written without TensorFlow: TFRecord framing (length,
//! masked CRC-32C of the length, bytes, masked CRC-32C of the bytes) around the few messages of
//! `tensorboard/compat/proto/{event,summary}.proto` that scalars need.
//!
//! They are not read back: `metrics.jsonl` has the same numbers and more.

use super::jsonl::Appended;
use super::metrics::StepRecord;
use engine::error::{Error, Result};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    /// Optional so that 0 is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.START`: TensorBoard drops this and later steps of earlier files, as a resumed run needs it.
const START: i32 = 1;

/// An event file open for appending, on rank 0.
pub struct EventLog {
    path: PathBuf,
    file: Appended,
}

impl EventLog {
    /// Creates an event file in `run_dir/tensorboard` for a run whose next step is `first_step`.
    pub fn create(run_dir: &Path, first_step: u64) -> Result<EventLog> {
        let dir = run_dir.join("tensorboard");
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        let now = now();
        let path = dir.join(format!("events.out.tfevents.{}.{}.{}", now as u64, host(), std::process::id()));
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut log = EventLog { path, file: Appended::new(file) };
        log.write(&[
            Event { wall_time: now, file_version: Some("brain.Event:2".into()), ..Default::default() },
            Event {
                wall_time: now,
                step: first_step as i64,
                session_log: Some(SessionLog { status: START }),
                ..Default::default()
            },
        ])?;
        Ok(log)
    }

    /// Writes the scalars of one step. A failed write leaves no part of them, which would end the file for its readers.
    pub fn append(&mut self, record: &StepRecord) -> Result<()> {
        self.write(&[step_event(record, now())])
    }

    fn write(&mut self, events: &[Event]) -> Result<()> {
        let bytes: Vec<u8> = events.iter().flat_map(|e| framed(&prost::Message::encode_to_vec(e))).collect();
        self.file.append(&bytes).map_err(|e| Error::io(&self.path, e))
    }
}

fn step_event(record: &StepRecord, wall_time: f64) -> Event {
    let scalars = [
        ("loss", Some(record.loss)),
        ("grad_norm", Some(record.grad_norm)),
        ("lr", Some(record.lr)),
        ("tokens_per_s", Some(record.tokens_per_s)),
        ("tflops_model", Some(record.tflops_model)),
        ("tflops_full", Some(record.tflops_full)),
        ("sol", record.sol),
        ("valid_loss", record.valid_loss),
        ("aux_loss", record.aux_loss),
        ("router_z_loss", record.router_z_loss),
        ("expert_load/max_over_mean", record.expert_load.map(|load| load.max_over_mean)),
        ("expert_load/entropy", record.expert_load.map(|load| load.entropy)),
    ];
    let scalars = scalars.into_iter().map(|(tag, number)| (tag.to_string(), number));
    let sets = record.valid.iter().flat_map(|(name, set)| {
        [(format!("valid_loss/{name}"), Some(set.loss)), (format!("valid_bits_per_byte/{name}"), set.bits_per_byte)]
    });
    let scores = record.tasks.iter().flat_map(|(task, scores)| {
        scores.iter().map(move |(metric, score)| (format!("tasks/{task}/{metric}"), Some(*score)))
    });
    let value =
        |(tag, number): (String, Option<f64>)| number.map(|number| Value { tag, simple_value: Some(number as f32) });
    let summary = Summary { value: scalars.chain(sets).chain(scores).filter_map(value).collect() };
    Event { wall_time, step: record.step as i64, summary: Some(summary), ..Default::default() }
}

/// One TFRecord.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// The masked CRC-32C of TFRecord. The mask avoids computing the CRC of data that embeds its own CRC.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The host name, in characters that are safe in a file name.
fn host() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = name.to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
    if name.is_empty() { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::metrics::SetRecord;
    use prost::Message;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    /// Written by TensorBoard 2.20's own `RecordWriter` and protos.
    #[test]
    fn records_equal_those_of_tensorboard() {
        let version = Event { wall_time: 1.5, file_version: Some("brain.Event:2".into()), ..Default::default() };
        let golden = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c";
        assert_eq!(framed(&version.encode_to_vec()), bytes(golden));

        let value = |tag: &str, number| Value { tag: tag.into(), simple_value: Some(number) };
        let summary = Summary { value: vec![value("loss", 3.25), value("lr", 0.0)] };
        let event = Event { wall_time: 2.5, step: 7, summary: Some(summary), ..Default::default() };
        let golden = "2500000000000000eabc36f309000000000000044010072a180a0b0a046c6f737315000050400a090a026c72\
                      1500000000e1f120d7";
        assert_eq!(framed(&event.encode_to_vec()), bytes(golden));

        let session_log = Some(SessionLog { status: START });
        let start = Event { wall_time: 2.5, step: 7, session_log, ..Default::default() };
        assert_eq!(start.encode_to_vec(), bytes("09000000000000044010073a020801"));
    }

    /// The records of a file, whose checksums must be right.
    fn records(mut file: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !file.is_empty() {
            let (length, rest) = file.split_at(8);
            let (length_crc, rest) = rest.split_at(4);
            assert_eq!(length_crc, masked_crc(length));
            let (data, rest) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (data_crc, rest) = rest.split_at(4);
            assert_eq!(data_crc, masked_crc(data));
            events.push(Event::decode(data).unwrap());
            file = rest;
        }
        events
    }

    #[test]
    fn a_file_has_its_first_step_and_every_step() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = EventLog::create(dir.path(), 41).unwrap();
        log.append(&StepRecord { step: 41, loss: 2.5, ..Default::default() }).unwrap();
        let mut last = StepRecord { step: 42, loss: f64::NAN, valid_loss: Some(3.0), ..Default::default() };
        let set = |loss, bits_per_byte| SetRecord { loss, bits_per_byte, loss_tokens: 8 };
        last.valid = [("en".into(), set(2.0, None)), ("ja".into(), set(4.0, Some(1.5)))].into();
        log.append(&last).unwrap();

        let name = log.path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents."), "{name}");
        let events = records(&std::fs::read(&log.path).unwrap());
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((events[1].step, &events[1].session_log), (41, &Some(SessionLog { status: START })));
        let scalars = |e: &Event| {
            e.summary
                .iter()
                .flat_map(|s| &s.value)
                .map(|v| (v.tag.clone(), v.simple_value.unwrap()))
                .collect::<Vec<_>>()
        };
        assert_eq!(scalars(&events[2])[0], ("loss".into(), 2.5));
        assert_eq!(scalars(&events[2]).len(), 6);
        assert!(scalars(&events[3])[0].1.is_nan());
        let valid =
            [("valid_loss", 3.0), ("valid_loss/en", 2.0), ("valid_loss/ja", 4.0), ("valid_bits_per_byte/ja", 1.5)];
        assert_eq!(scalars(&events[3])[6..], valid.map(|(tag, number)| (tag.to_string(), number)));
        assert_eq!(events.len(), 4);
    }
}
