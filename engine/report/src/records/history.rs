//! `history.jsonl`: every start and end of a run, one JSON object each, in the order of time.

use super::jsonl::Log;
use super::status::now;
use engine::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

pub const NAME: &str = "history.jsonl";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970.
    pub time: u64,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum What {
    Start {
        /// The step that the run continues after; 0 for a new one.
        step: u64,
        version: String,
        /// The host of each rank.
        hosts: Vec<String>,
        /// Tensor, pipeline and data parallelism.
        layout: [usize; 3],
        /// Keys of the configuration with their values before and now, as TOML; absent: null.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        changed: BTreeMap<String, [Option<String>; 2]>,
    },
    End {
        /// The last completed step.
        step: u64,
        /// `finished`, `stopped` or `failed`.
        state: String,
        reason: String,
    },
    /// `--from-step` went back: the later steps were abandoned.
    Rollback { from: u64, to: u64 },
}

/// Appends an event that happens now, and flushes it: whether a run went back must outlast a power cut.
pub fn append(dir: &Path, what: What) -> Result<()> {
    let path = dir.join(NAME);
    Log::open(&path)?.append(&Event { time: now(), what })?;
    File::open(&path).and_then(|file| file.sync_all()).map_err(|e| Error::io(&path, e))
}

/// Whether the file has lines that [`read`] leaves out, beside a torn last one.
pub fn is_damaged(dir: &Path) -> bool {
    let text = std::fs::read(dir.join(NAME)).unwrap_or_default();
    let whole = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
    let unreadable = |line: &[u8]| !line.is_empty() && serde_json::from_slice::<Event>(line).is_err();
    text[..whole].split(|&byte| byte == b'\n').any(unreadable)
}

/// All events; a line that is torn or of another version is left out.
pub fn read(dir: &Path) -> Result<Vec<Event>> {
    let path = dir.join(NAME);
    match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::io(&path, e)),
        Ok(text) => {
            let lines = text.split(|&byte| byte == b'\n');
            Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
        }
    }
}

/// The step to which the run went back last, with the time, if it did.
pub fn last_rollback(events: &[Event]) -> Option<(u64, u64)> {
    events.iter().rev().find_map(|event| match event.what {
        What::Rollback { to, .. } => Some((to, event.time)),
        _ => None,
    })
}

/// The keys whose values differ between two configurations in TOML, each with both values.
pub fn changes(before: &toml::Table, now: &toml::Table) -> BTreeMap<String, [Option<String>; 2]> {
    let (before, now) = (flat(before, ""), flat(now, ""));
    let keys = before.keys().chain(now.keys());
    let pair = |key: &String| (key.clone(), [before.get(key).cloned(), now.get(key).cloned()]);
    keys.filter(|key| before.get(*key) != now.get(*key)).map(pair).collect()
}

/// Every value that is no table, by its dotted key.
fn flat(table: &toml::Table, path: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (key, value) in table {
        let key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match value {
            toml::Value::Table(inner) => all.extend(flat(inner, &key)),
            value => drop(all.insert(key, value.to_string())),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_promised_keys_and_is_read_back() {
        let changed = BTreeMap::from([("optimizer.lr".to_string(), [Some("0.1".to_string()), None])]);
        let start = What::Start { step: 4, version: "1".into(), hosts: vec!["a".into()], layout: [1, 1, 1], changed };
        let end = What::End { step: 9, state: "stopped".into(), reason: "SIGUSR1".into() };
        let events = [start, What::Rollback { from: 8, to: 4 }, end].map(|what| Event { time: 7, what });
        let text: Vec<String> = events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
        assert!(
            text[0].starts_with("{\"time\":7,\"event\":\"start\",\"step\":4,\"version\":\"1\",\"hosts\""),
            "{}",
            text[0]
        );
        assert_eq!(text[1], "{\"time\":7,\"event\":\"rollback\",\"from\":8,\"to\":4}");
        let dir = tempfile::tempdir().unwrap();
        let damaged = [&b"\xff\xfe\n"[..], text.join("\n").as_bytes(), b"\n{\"time\": 8, \"ev"].concat();
        std::fs::write(dir.path().join(NAME), damaged).unwrap();
        let read = read(dir.path()).unwrap();
        assert_eq!((&read[..], last_rollback(&read)), (&events[..], Some((4, 7))));
        assert!(is_damaged(dir.path()));
        std::fs::write(dir.path().join(NAME), text.join("\n") + "\n{\"time\": 8, \"ev").unwrap();
        assert!(!is_damaged(dir.path()), "the last line of a killed run may be torn");
    }

    #[test]
    fn changed_keys_are_named_with_both_values() {
        let parse = |text: &str| text.parse::<toml::Table>().unwrap();
        let before = parse("[optimizer]\nlr = 0.1\nbetas = [0.9, 0.95]\n[train]\nseed = 1\n");
        let now = parse("[optimizer]\nlr = 0.2\nbetas = [0.9, 0.95]\n[watchdog]\nseconds = 5\n[train]\nseed = 1\n");
        let text = |value: &str| Some(value.to_string());
        let wanted = [("optimizer.lr", [text("0.1"), text("0.2")]), ("watchdog.seconds", [None, text("5")])];
        assert_eq!(changes(&before, &now), wanted.map(|(key, pair)| (key.to_string(), pair)).into());
    }
}
