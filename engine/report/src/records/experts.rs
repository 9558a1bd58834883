//! `experts.jsonl`: how often each expert was chosen, summed over some steps. Only runs of models with experts write
//! it.

use super::jsonl::{LAST_STEP, Log, Record, read as read_lines};
use engine::error::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The name of the file in the run's directory.
pub const EXPERTS: &str = "experts.jsonl";

/// The choices of some steps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExpertsRecord {
    /// The last of the steps.
    pub step: u64,
    /// Their number.
    pub steps: u64,
    /// The layers with experts, counted from 0.
    pub layers: Vec<usize>,
    /// The choices of each expert, for each of these layers.
    pub load: Vec<Vec<u64>>,
}

impl Record for ExpertsRecord {
    fn step(&self) -> u64 {
        self.step
    }

    fn is_sound(&self) -> bool {
        let experts = self.load.first().map_or(0, Vec::len);
        self.step <= LAST_STEP
            && self.layers.len() == self.load.len()
            && experts > 0
            && self.load.iter().all(|load| load.len() == experts)
    }
}

pub type ExpertsLog = Log<ExpertsRecord>;

/// The records of a run; none if it has no such file.
pub fn read(run_dir: &Path) -> Result<Vec<ExpertsRecord>> {
    let path = run_dir.join(EXPERTS);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    Ok(read_lines(&path)?.records)
}
