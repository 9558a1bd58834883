//! `memory.json`: the memory of every rank, as it was planned and as it was used.

use super::machine::unfit_ranks;
use super::write_pretty;
use engine::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub ranks: Vec<RankMemory>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankMemory {
    pub rank: usize,
    #[serde(default)]
    pub host: String,
    pub planned: Bytes,
    pub used: Bytes,
}

/// Bytes of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bytes {
    /// Blocks in use at the peak.
    #[serde(default)]
    pub peak_bytes: u64,
    /// All blocks that the backend holds, free ones included.
    pub reserved_bytes: u64,
    /// The copy on the host that a checkpoint is written from.
    pub checkpoint_copy_bytes: u64,
    /// Bytes of the device beside these blocks: CUDA's context, the libraries, other processes. Planned is what they
    /// had taken before the blocks were, and a reserve. Absent on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub others_bytes: Option<u64>,
}

impl Memory {
    pub fn write(&self, path: &Path) -> Result<()> {
        write_pretty(path, self)
    }

    /// Why it does not describe a run of `ranks`; `None` where it lists each rank once.
    pub fn unfit(&self, ranks: usize) -> Option<String> {
        let listed: BTreeSet<usize> = self.ranks.iter().map(|rank| rank.rank).collect();
        let all = listed.into_iter().eq(0..ranks);
        let not_all = (!all).then(|| format!("it does not list each of ranks 0 to {} once", ranks - 1));
        unfit_ranks(self.ranks.len(), ranks).or(not_all)
    }
}
