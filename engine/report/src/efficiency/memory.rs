//! Memory as it was planned and as it was used.

use super::super::run::Run;
use engine::config::Axis;
use serde::Serialize;

/// Of a rank, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryUse {
    pub rank: usize,
    pub stage: usize,
    pub planned_bytes: u64,
    pub used_bytes: u64,
    /// On the host, while a checkpoint is written.
    pub checkpoint_copy_bytes: u64,
}

pub fn of(run: &Run) -> Option<Vec<MemoryUse>> {
    let one = |rank: &super::super::run::MemoryOfRank| MemoryUse {
        rank: rank.rank,
        stage: run.mesh.coord(rank.rank, Axis::Pipeline),
        planned_bytes: rank.planned.reserved_bytes,
        used_bytes: rank.used.reserved_bytes,
        checkpoint_copy_bytes: rank.used.checkpoint_copy_bytes,
    };
    Some(run.memory.there()?.ranks.iter().map(one).collect())
}
