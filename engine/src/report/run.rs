//! What a run left in its directory, read again. Only the configuration and the metrics must be there: a run that was
//! killed, or that an older engine made, lacks others.

use super::lines::Lines;
use super::machine::Machine;
use super::metrics::{self, StepRecord};
use super::samples::{self, Sample};
use super::timeline::Timeline;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::mesh::Mesh;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub struct Run {
    /// As the user said it.
    pub dir: PathBuf,
    /// The directory's own name.
    pub name: String,
    pub config: Config,
    pub mesh: Mesh,
    pub machine: Option<Machine>,
    /// At least one.
    pub steps: Lines<StepRecord>,
    /// Of the run's layout; those of a time when it had another are left out.
    pub samples: Lines<Sample>,
    pub timeline: Option<Timeline>,
    pub memory: Option<Memory>,
    pub plan: Option<Plan>,
}

/// `memory.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Memory {
    pub ranks: Vec<MemoryOfRank>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MemoryOfRank {
    pub rank: usize,
    pub planned: Taken,
    pub used: Taken,
}

/// What a rank takes, in bytes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Taken {
    pub reserved_bytes: u64,
    /// On the host, beside it.
    pub checkpoint_copy_bytes: u64,
}

/// What `plan --json` said of the run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Plan {
    pub ranks: usize,
    pub tensor: usize,
    pub pipeline: usize,
    pub data: usize,
    pub cluster: String,
    /// `None` where nobody knows what the cluster reaches.
    pub step: Option<PlannedStep>,
}

impl Plan {
    /// Tensor, pipeline, data.
    pub fn layout(&self) -> [usize; 3] {
        [self.tensor, self.pipeline, self.data]
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PlannedStep {
    pub seconds: f64,
    pub tokens_per_s_per_gpu: f64,
    /// Seconds by what they go into.
    pub shares: Map<String, Value>,
    pub timeline: Option<Timeline>,
}

impl Run {
    pub fn read(dir: &Path) -> Result<Run> {
        let [config, metrics] = ["config.toml", "metrics.jsonl"].map(|name| dir.join(name));
        if let Some(missing) = [&config, &metrics].into_iter().find(|path| !path.is_file()) {
            let missing = missing.file_name().expect("as joined").display();
            return Err(Error::user(format!(
                "{}: not the directory of a run: there is no {missing} in it; name what a run had as checkpoint.dir",
                dir.display()
            )));
        }
        let text = std::fs::read_to_string(&config).map_err(|e| Error::io(&config, e))?;
        let config = Config::from_resolved(&text).map_err(|e| Error::user(format!("{}: {e}", dir.display())))?;
        let steps = metrics::read(&metrics)?;
        let Some(last) = steps.records.last() else {
            let what = "no whole step in it; report on a run that has done one";
            return Err(Error::user(format!("{}: {what}", metrics.display())));
        };
        let ranks = ranks_of(last);
        let mesh = config.mesh_as_asked(ranks, &format!("{}: the run of {ranks} ranks", dir.display()))?;
        Ok(Run {
            name: name_of(dir),
            samples: samples_of(dir, &mesh)?,
            timeline: optional(dir, "timeline.json")?.filter(|timeline: &Timeline| timeline.layout == mesh.layout()),
            machine: optional(dir, "machine.json")?.filter(|machine: &Machine| machine.hosts.len() == ranks),
            memory: optional(dir, "memory.json")?.filter(|memory: &Memory| memory.ranks.len() == ranks),
            plan: optional(dir, "plan.json")?,
            dir: dir.to_path_buf(),
            config,
            mesh,
            steps,
        })
    }
}

/// How many ranks did this step: its line has the speed of all and of one.
pub fn ranks_of(step: &StepRecord) -> usize {
    (step.tokens_per_s / step.tokens_per_s_per_rank).round() as usize
}

fn name_of(dir: &Path) -> String {
    let whole = std::fs::canonicalize(dir).unwrap_or(dir.to_path_buf());
    whole.file_name().map_or("/".into(), |name| name.to_string_lossy().into_owned())
}

fn samples_of(dir: &Path, mesh: &Mesh) -> Result<Lines<Sample>> {
    let path = dir.join("ranks.jsonl");
    if !path.exists() {
        return Ok(Lines { records: Vec::new(), skipped: Vec::new() });
    }
    let mut samples = samples::read(&path)?;
    let all = |s: &Sample| {
        let named = s.phases.values().chain(s.waits.values());
        s.layout == mesh.layout() && named.chain([&s.seconds, &s.busy]).all(|of_ranks| of_ranks.len() == mesh.ranks())
    };
    samples.records.retain(all);
    Ok(samples)
}

fn optional<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let remedy = "make it again, or take it away";
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::user(format!("{}: {e}; {remedy}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_run_is_named_with_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let error = || Run::read(dir.path()).err().unwrap().to_string();
        assert!(error().contains("there is no config.toml in it"), "{}", error());
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        assert!(error().contains("there is no metrics.jsonl in it"), "{}", error());
        std::fs::write(dir.path().join("metrics.jsonl"), "").unwrap();
        std::fs::write(dir.path().join("config.toml"), b"\x93\xfa").unwrap();
        assert!(matches!(Run::read(dir.path()), Err(Error::User(text)) if text.contains("config.toml")));
    }

    #[test]
    fn what_is_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(optional::<Plan>(dir.path(), "plan.json").unwrap(), None);
        std::fs::write(dir.path().join("plan.json"), "{\"ranks\": 4, \"tensor\": 1, \"pipeline\": 1, \"data\": 4}")
            .unwrap();
        let error = optional::<Plan>(dir.path(), "plan.json").unwrap_err().to_string();
        assert!(error.contains("plan.json: missing field `cluster`"), "{error}");
    }
}
