//! `traces/step-*-rank-*.json`: a traced step in the trace event format of Perfetto and `chrome://tracing`. Each rank
//! has its own file, each track a row.

use engine::backend::{Span, Track};
use engine::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The seconds of a traced step, and those in which the compute stream was busy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Busy {
    /// From the first op to the last.
    pub step: f64,
    /// The time in which an op ran.
    pub compute: f64,
}

impl Busy {
    /// `None` where no op was traced.
    pub fn of(spans: &[Span]) -> Option<Busy> {
        let mut compute: Vec<(f64, f64)> =
            spans.iter().filter(|span| span.track == Track::Compute).map(|span| (span.start, span.end)).collect();
        compute.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (start, end) = (compute.first()?.0, compute.iter().map(|span| span.1).fold(0.0, f64::max));
        let (mut busy, mut until) = (0.0, start);
        for (from, to) in compute {
            busy += (to - from.max(until)).max(0.0);
            until = until.max(to);
        }
        Some(Busy { step: end - start, compute: busy })
    }

    /// The share of the step in which no op ran: waits for other ranks and for the host.
    pub fn idle(&self) -> f64 {
        1.0 - self.compute / self.step
    }
}

/// Writes the spans of a step of `rank` into the run directory and returns the path.
pub fn write(run: &Path, step: u64, rank: usize, spans: &[Span]) -> Result<PathBuf> {
    let dir = run.join("traces");
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let path = dir.join(format!("step-{step:08}-rank-{rank:05}.json"));
    super::replace(&path, document(events(rank, spans)).to_string().as_bytes())?;
    Ok(path)
}

/// Writes the spans of several ranks into one file.
pub fn write_all(path: &Path, ranks: &[(usize, &[Span])]) -> Result<()> {
    let events = ranks.iter().flat_map(|(rank, spans)| events(*rank, spans)).collect();
    std::fs::write(path, document(events).to_string()).map_err(|e| Error::io(path, e))
}

fn document(events: Vec<Value>) -> Value {
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

/// Times are in microseconds; a rank is a process, a track a thread.
fn events(rank: usize, spans: &[Span]) -> Vec<Value> {
    let tracks: BTreeSet<Track> = spans.iter().map(|span| span.track).collect();
    let number = |track: Track| tracks.iter().position(|&t| t == track).expect("the set is made of all");
    let name = |what: &str, thread: usize, name: &str| {
        let args = json!({ "name": name });
        json!({ "ph": "M", "name": what, "pid": rank, "tid": thread, "args": args })
    };
    let named = tracks.iter().map(|&track| name("thread_name", number(track), &track.to_string()));
    let micro = |seconds: f64| (seconds * 1e9).round() / 1e3;
    let event = |span: &Span| {
        json!({
            "ph": "X", "name": span.label.to_string(), "pid": rank, "tid": number(span.track),
            "ts": micro(span.start), "dur": micro(span.end - span.start),
        })
    };
    let process = name("process_name", 0, &format!("rank {rank}"));
    [process].into_iter().chain(named).chain(spans.iter().map(event)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::backend::Label;

    fn span(track: Track, name: &str, start: f64, end: f64) -> Span {
        Span { track, label: Label::Op(name.into()), start, end }
    }

    #[test]
    fn time_without_an_op_is_idle() {
        let spans = [
            span(Track::Parts, "forward", 0.0, 9.0),
            span(Track::Compute, "b", 2.0, 3.0),
            span(Track::Compute, "a", 1.0, 2.5),
            span(Track::Compute, "c", 4.0, 5.0),
        ];
        let busy = Busy::of(&spans).unwrap();
        assert_eq!(busy, Busy { step: 4.0, compute: 3.0 });
        assert_eq!(busy.idle(), 0.25);
        assert_eq!(Busy::of(&spans[..1]), None);
    }

    #[test]
    fn a_file_has_a_row_per_track_and_times_in_microseconds() {
        let dir = tempfile::tempdir().unwrap();
        let spans = [span(Track::Compute, "rope", 0.001, 0.0015), span(Track::Parts, "layer 3", 0.0, 0.002)];
        let path = write(dir.path(), 12, 3, &spans).unwrap();
        assert!(path.ends_with("traces/step-00000012-rank-00003.json"));
        let read: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let events = read["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 5);
        assert_eq!(
            (&events[3]["ts"], &events[3]["dur"], &events[3]["tid"]),
            (&json!(1000.0), &json!(500.0), &json!(1))
        );
        assert_eq!(events[2]["args"]["name"], "compute");
    }
}
