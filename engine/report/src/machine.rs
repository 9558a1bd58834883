//! `machine.json`: what a run ran on, for whoever reads its directory later.

use engine::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Of this engine.
    pub version: String,
    /// As its driver, or the CPU, calls it.
    pub device: String,
    /// `f32` or `bf16`.
    pub precision: String,
    /// Of each rank, in the mesh's order.
    pub hosts: Vec<String>,
}

impl Machine {
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("text and numbers") + "\n";
        std::fs::write(path, text).map_err(|e| Error::io(path, e))
    }
}
