//! The start of a run in its `history.jsonl`, and what has changed since the last one.

use crate::output::say;
use engine::config::Config;
use engine::layout::mesh::Mesh;
use report::records::history::{What, append, changes};
use std::collections::BTreeMap;

/// The most changed keys that the log lists.
const LISTED: usize = 20;

/// Records a start after `step` and lists the keys that have changed. Call this before `config.toml` is replaced. The
/// history only informs: a run goes on without it.
pub fn started(config: &Config, mesh: &Mesh, hosts: &[String], step: u64) {
    let dir = &config.checkpoint.dir;
    let before = std::fs::read_to_string(dir.join("config.toml")).ok().and_then(|text| text.parse().ok());
    let now = config.to_toml().parse().expect("a configuration is TOML");
    let changed = before.map_or(BTreeMap::new(), |before: toml::Table| changes(&before, &now));
    let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".into());
    for (key, [was, is]) in changed.iter().take(LISTED) {
        say!("changed: {key} was {}, is now {}", show(was), show(is));
    }
    if changed.len() > LISTED {
        say!("changed: {} more keys, see history.jsonl", changed.len() - LISTED);
    }
    let version = env!("CARGO_PKG_VERSION").to_string();
    let start = What::Start { step, version, hosts: hosts.to_vec(), layout: mesh.layout(), changed };
    if let Err(error) = append(dir, start) {
        say!("warning: {error}; the run goes on without its history");
    }
}
