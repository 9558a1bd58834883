//! `machine.json`: the hardware and software of a run.

use super::write_pretty;
use engine::error::{Result, counted};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of this engine.
    pub version: String,
    /// Name of the device by its driver, or of the CPU.
    pub device: String,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Host of each rank, in the order of the mesh.
    pub hosts: Vec<String>,
}

impl Machine {
    pub fn write(&self, path: &Path) -> Result<()> {
        write_pretty(path, self)
    }

    /// Why it does not describe a run of `ranks`; `None` where it does.
    pub fn unfit(&self, ranks: usize) -> Option<String> {
        unfit_ranks(self.hosts.len(), ranks)
    }
}

/// Why a file of `listed` ranks does not fit a run of `ranks`.
pub(super) fn unfit_ranks(listed: usize, ranks: usize) -> Option<String> {
    (listed != ranks).then(|| format!("it lists {}, the run has {ranks}", counted(listed, "rank")))
}
