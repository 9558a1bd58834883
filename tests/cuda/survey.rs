//! The time of every rank by phase and group, measured by the device's events.

use super::{Site, apart, small, with};
use crate::common::metrics;
use serde_json::Value;

/// At TP2 PP2 a rank waits for groups of every kind.
#[test]
fn waits_are_reported_by_group() {
    let site = Site::new();
    let more = [
        ("parallel.tensor", 2.into()),
        ("parallel.pipeline", 2.into()),
        ("train.steps", 3.into()),
        ("report.interval", 2.into()),
    ];
    site.run("run", 4, &with(&small(site.tmp.path()), &more), apart);
    assert_eq!(metrics(&site.dir("run")).len(), 3, "each step has its line, sampled or not");
    let text = std::fs::read_to_string(site.dir("run").join("ranks.jsonl")).unwrap();
    let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.len(), 1, "{text}");
    let of_all = |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(samples[0]["step"], 2);
    for group in ["tensor", "activations", "gradients", "world"] {
        assert_eq!(of_all(&samples[0]["waits"][group]).len(), 4, "{group}: {text}");
    }
    assert!(of_all(&samples[0]["waits"]["tensor"]).iter().all(|seconds| *seconds > 0.0), "{text}");
    let (busy, seconds) = (of_all(&samples[0]["busy"]), of_all(&samples[0]["seconds"]));
    assert!(busy.iter().zip(&seconds).all(|(busy, seconds)| 0.0 < *busy && busy < seconds), "{text}");
    let timeline: Value =
        serde_json::from_slice(&std::fs::read(site.dir("run").join("timeline.json")).unwrap()).unwrap();
    assert_eq!(timeline["ranks"].as_array().unwrap().len(), 4);
}
