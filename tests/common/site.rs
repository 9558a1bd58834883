//! A run of a golden case in a folder of its own, for the tests of what happens to runs.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use super::{Case, Outcome, Running, finish, metrics, set, write_config};

pub struct Site {
    pub tmp: TempDir,
    pub config: Table,
}

impl Site {
    /// A run whose rates and samples do not depend on its number of steps, without validation.
    pub fn new() -> Site {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = Case::open("mha_odd_vocab").config(&tmp.path().join("run"));
        set(&mut config, "train.eval_interval", 0);
        set(&mut config, "optimizer.schedule", "constant");
        set(&mut config, "data.order", "sequential");
        Site { tmp, config }
    }

    /// One that does not end by itself.
    pub fn endless() -> Site {
        Site::new().with("train.steps", 1_000_000)
    }

    pub fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Site {
        set(&mut self.config, key, value);
        self
    }

    pub fn run(&self) -> PathBuf {
        self.tmp.path().join("run")
    }

    /// The command `start` with the arguments that train this run.
    pub fn command(&self, mut start: Command) -> Command {
        start.args(["train", "--config"]).arg(write_config(self.tmp.path(), "config.toml", &self.config));
        start
    }

    pub fn train(&self, start: Command) -> Outcome {
        finish(&mut self.command(start))
    }

    /// Starts the run, and returns when some steps are done.
    pub fn start(&self, command: Command) -> Running {
        let mut running = Running::start(&mut self.command(command));
        let before = metrics(&self.run()).len();
        let ended = running.wait_until(|_| metrics(&self.run()).len() >= before + 3);
        assert!(ended.is_none(), "the run ended before it was disturbed: {:?}", running.outcome());
        running
    }

    pub fn status(&self) -> Value {
        json(self.run().join("status.json"))
    }

    pub fn manifest(&self, step: u64) -> Value {
        json(self.run().join(format!("checkpoints/step-{step:08}/manifest.json")))
    }

    /// The step that `latest` names.
    pub fn latest(&self) -> u64 {
        let name = std::fs::read_to_string(self.run().join("checkpoints/latest")).unwrap();
        name.trim().trim_start_matches("step-").parse().unwrap()
    }
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
