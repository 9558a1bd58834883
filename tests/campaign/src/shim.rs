//! What the shim (`tests/campaign/shim`) is told to do; its variables are described there.

use crate::draw::Draw;
use std::process::Command;

/// Operations that are disturbed, and how.
#[derive(Clone, Default)]
pub struct Shim {
    pub files: &'static str,
    pub ops: &'static str,
    /// `None`: every rank.
    pub rank: Option<usize>,
    pub first: usize,
    pub count: usize,
    pub action: String,
    /// Whether flushes are followed, so that the power can be lost.
    pub follows: bool,
}

/// Operations that need space.
pub const GROWING: &str = "open,write,fsync,mkdir";

impl Shim {
    /// Disturbs one operation.
    pub fn once(target: Target, action: impl Into<String>) -> Shim {
        let Target { rank, number } = target;
        Shim { rank: Some(rank), first: number, count: 1, action: action.into(), ..Shim::default() }
    }

    /// Each line of metrics takes some milliseconds, so that a run of a few steps can be met in the middle.
    pub fn slow_steps(milliseconds: u64) -> Shim {
        let action = format!("pause:{milliseconds}");
        Shim { files: "metrics.jsonl", ops: "write", count: usize::MAX, action, ..Shim::default() }
    }

    pub fn set(&self, command: &mut Command) {
        let rank = self.rank.map_or(String::new(), |rank| rank.to_string());
        command.env("SHIM_FILES", self.files).env("SHIM_OPS", self.ops).env("SHIM_RANK", rank);
        command.env("SHIM_FIRST", self.first.to_string()).env("SHIM_COUNT", self.count.to_string());
        command.env("SHIM_ACTION", &self.action);
    }
}

/// An operation of a rank.
pub struct Target {
    pub rank: usize,
    pub number: usize,
}

/// An operation out of each rank's `log`, among those of the functions `ops` and of paths with one of `files`. A file
/// that is written in many parts is not drawn more often than one that is written at once.
pub fn draw(draw: &mut Draw, logs: &[String], files: &str, ops: &str) -> Target {
    let is_among = |list: &str, is: &dyn Fn(&str) -> bool| list.is_empty() || list.split(',').any(is);
    let counts = |line: &&str| {
        let (op, path) = line.split_once(' ').unwrap_or((line, ""));
        is_among(files, &|text| path.contains(text)) && is_among(ops, &|name| op == name)
    };
    let mut runs: Vec<(usize, std::ops::Range<u64>)> = Vec::new();
    for (rank, log) in logs.iter().enumerate() {
        let mut last = "";
        for (number, line) in log.lines().filter(counts).enumerate() {
            match runs.last_mut() {
                Some((_, range)) if line == last => range.end += 1,
                _ => runs.push((rank, number as u64..number as u64 + 1)),
            }
            last = line;
        }
    }
    let (rank, range) = runs[draw.index(runs.len())].clone();
    Target { rank, number: draw.within(range) as usize }
}
