//! `status.json`: how a run stands, for job scripts, for `swallow-engine status`, and for people. It is always replaced
//! as a whole.

use engine::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub const NAME: &str = "status.json";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    /// Completed steps.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The loss of that step; `None` before the first one of this process.
    pub loss: Option<f64>,
    /// The newest complete checkpoint's step.
    pub checkpoint: Option<u64>,
    /// The host that wrote this file: rank 0's, or that of the rank that reports a failure.
    pub host: String,
    /// One sentence.
    pub reason: String,
    /// Number of rank 0's process on its host.
    pub pid: u32,
    /// When this was written, in seconds since 1970.
    pub time: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    /// All steps are done.
    Finished,
    /// It ended early as it was asked to, and the same command continues it.
    Stopped,
    /// It ended by a failure, which somebody may have to mend.
    Failed,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Finished => "finished",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

impl Status {
    /// Replaces `dir/status.json`. `writer` tells apart ranks and threads that write it at the same time.
    pub fn write(&self, dir: &Path, writer: &str) -> Result<()> {
        let partial = dir.join(format!("{NAME}.{writer}.partial"));
        let text = serde_json::to_string_pretty(self).expect("text and numbers") + "\n";
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, dir.join(NAME)));
        written.map_err(|e| {
            // The failure that is reported is the write's.
            let _ = std::fs::remove_file(&partial);
            Error::io(&dir.join(NAME), e)
        })
    }

    /// `None` where the directory has no such file.
    pub fn read(dir: &Path) -> Result<Option<Status>> {
        let path: PathBuf = dir.join(NAME);
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(&path, e)),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Error::user(format!("{}: {e}; the file is damaged, delete it", path.display()))),
        }
    }
}

/// The time now, in seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
