//! What a run left in its directory, read again. Only the configuration and the metrics must be there: a run that was
//! killed, or that an older engine made, lacks others.

use super::found::{Found, find, optional};
use super::lines::Lines;
use super::machine::Machine;
use super::metrics::{self, StepRecord};
use super::samples::{self, Sample};
use super::settings::{layout, settings};
use super::timeline::Timeline;
use engine::config::Config;
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub struct Run {
    /// As the user said it.
    pub dir: PathBuf,
    /// The directory's own name.
    pub name: String,
    pub config: Config,
    pub mesh: Mesh,
    /// What its steps' time depends on (`settings.rs`), as its configuration has it now.
    pub settings: String,
    pub machine: Found<Machine>,
    /// At least one is at the run's settings.
    pub steps: Lines<StepRecord>,
    /// Of the run's settings; those of a time when it had others are left out.
    pub samples: Lines<Sample>,
    pub timeline: Found<Timeline>,
    pub memory: Found<Memory>,
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
    /// What the planned step's time depends on, and the parameters of its model. Older plans have neither.
    pub settings: Option<String>,
    pub parameters: Option<u64>,
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
        let mesh = mesh_now(&config, &steps.records).ok_or_else(|| nothing_now(dir, &config, last.ranks()))?;
        let (ranks, settings) = (mesh.ranks(), settings(&config, &mesh));
        let other = |step: &&StepRecord| !is_at(step, &settings, &mesh);
        let others: BTreeSet<u64> = steps.records.iter().filter(other).map(|step| step.step).collect();
        Ok(Run {
            name: name_of(dir),
            samples: samples_of(dir, &mesh, &others)?,
            timeline: find(dir, "timeline.json", |timeline| unfit_timeline(timeline, &mesh, &others))?,
            machine: find(dir, "machine.json", |machine: &Machine| unfit_ranks(machine.hosts.len(), ranks))?,
            memory: find(dir, "memory.json", |memory| unfit_memory(memory, ranks))?,
            plan: optional(dir, "plan.json")?,
            dir: dir.to_path_buf(),
            config,
            mesh,
            settings,
            steps,
        })
    }

    /// The steps that were done as the run's configuration is now; it may have gone on at other settings.
    pub fn steps_as_now(&self) -> impl Iterator<Item = &StepRecord> {
        self.steps.records.iter().filter(|step| is_at(step, &self.settings, &self.mesh))
    }

    /// Why files are left out that are there.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        [self.timeline.left_out(), self.machine.left_out(), self.memory.left_out()].into_iter().flatten()
    }
}

/// A line of an older engine only tells how many ranks did the step.
fn is_at(step: &StepRecord, settings: &str, mesh: &Mesh) -> bool {
    match step.settings.as_str() {
        "" => step.ranks() == mesh.ranks(),
        told => told == settings,
    }
}

/// Of the newest step that was done as the configuration is now. That need not be the last one: a run that went back to
/// an earlier step still has the later ones from before.
fn mesh_now(config: &Config, steps: &[StepRecord]) -> Option<Mesh> {
    let mut ranks: Vec<usize> = steps.iter().rev().map(StepRecord::ranks).collect();
    ranks.dedup();
    let has_a_step = |mesh: &Mesh| {
        let settings = settings(config, mesh);
        steps.iter().any(|step| is_at(step, &settings, mesh))
    };
    ranks.into_iter().filter_map(|ranks| config.mesh(ranks).ok()).find(has_a_step)
}

/// Of a run that went on at other settings and has not done a step yet. `ranks`: of its last step.
fn nothing_now(dir: &Path, config: &Config, ranks: usize) -> Error {
    let run = format!("{}: the run of {}", dir.display(), counted(ranks, "rank"));
    let settings = match config.mesh_as_asked(ranks, &run) {
        Ok(mesh) => settings(config, &mesh),
        Err(error) => return error,
    };
    let remedy = "report on it once it has done one";
    Error::user(format!(
        "{}: no step was done at the settings of its config.toml ({settings}); {remedy}",
        dir.display()
    ))
}

/// `others`: steps of other settings.
fn unfit_timeline(timeline: &Timeline, mesh: &Mesh, others: &BTreeSet<u64>) -> Option<String> {
    if timeline.layout != mesh.layout() {
        return Some(format!("it is of {}, the run of {}", layout(timeline.layout), layout(mesh.layout())));
    }
    others.contains(&timeline.step).then(|| format!("it is of step {}, done at other settings", timeline.step))
}

fn unfit_ranks(of: usize, ranks: usize) -> Option<String> {
    (of != ranks).then(|| format!("it is of {}, the run of {ranks}", counted(of, "rank")))
}

/// Each rank must stand there once.
fn unfit_memory(memory: &Memory, ranks: usize) -> Option<String> {
    let named: BTreeSet<usize> = memory.ranks.iter().map(|of| of.rank).collect();
    let twice =
        || (!named.iter().copied().eq(0..ranks)).then(|| format!("its ranks are not 0 to {}, each once", ranks - 1));
    unfit_ranks(memory.ranks.len(), ranks).or_else(twice)
}

fn name_of(dir: &Path) -> String {
    let whole = std::fs::canonicalize(dir).unwrap_or(dir.to_path_buf());
    whole.file_name().map_or("/".into(), |name| name.to_string_lossy().into_owned())
}

/// `others`: steps of other settings.
fn samples_of(dir: &Path, mesh: &Mesh, others: &BTreeSet<u64>) -> Result<Lines<Sample>> {
    let path = dir.join("ranks.jsonl");
    if !path.exists() {
        return Ok(Lines { records: Vec::new(), skipped: Vec::new() });
    }
    let mut samples = samples::read(&path)?;
    let all = |s: &Sample| {
        let named = s.phases.values().chain(s.waits.values());
        s.layout == mesh.layout() && named.chain([&s.seconds, &s.busy]).all(|of_ranks| of_ranks.len() == mesh.ranks())
    };
    samples.records.retain(|sample| all(sample) && !others.contains(&sample.step));
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efficiency::tests::CONFIG;
    use serde_json::json;

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

    /// A run whose steps 4 and 5 are at its settings, the three before at others.
    fn went_on() -> (tempfile::TempDir, impl Fn() -> Result<Run>) {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        let config = Config::from_resolved(CONFIG).unwrap();
        put("config.toml", config.to_toml());
        let now = settings(&config, &config.mesh(4).unwrap());
        let step = |step: u64| StepRecord {
            step,
            step_time_s: 1.0,
            tokens_per_s: 512.0,
            tokens_per_s_per_rank: 128.0,
            settings: if step > 3 { now.clone() } else { "tensor 4".into() },
            ..Default::default()
        };
        put("metrics.jsonl", (1..=5).map(|at| serde_json::to_string(&step(at)).unwrap() + "\n").collect());
        let path = dir.path().to_path_buf();
        (dir, move || Run::read(&path))
    }

    #[test]
    fn files_of_the_run_as_it_was_are_left_out_and_said_to_be_there() {
        let (dir, read) = went_on();
        let put = |name: &str, of: serde_json::Value| std::fs::write(dir.path().join(name), of.to_string()).unwrap();
        let why = || read().unwrap().left_out().map(String::from).collect::<Vec<_>>();
        assert_eq!((why(), read().unwrap().steps_as_now().count()), (vec![], 2));
        let timeline =
            |step: u64, layout: [usize; 3]| json!({"step": step, "layout": layout, "seconds": 1, "ranks": []});
        put("timeline.json", timeline(3, [4, 1, 1]));
        put("machine.json", json!({"version": "0", "device": "d", "precision": "f32", "hosts": ["a"]}));
        let taken = json!({"reserved_bytes": 1, "checkpoint_copy_bytes": 0});
        let memory = |ranks: &[usize]| {
            let of_rank = |rank: &usize| json!({"rank": rank, "planned": taken, "used": taken});
            json!({"ranks": ranks.iter().map(of_rank).collect::<Vec<_>>()})
        };
        put("memory.json", memory(&[0, 1, 1, 3]));
        let left = [
            "`timeline.json` is left out: it is of tensor 4 x pipeline 1 x data 1, the run of tensor 1 x pipeline 2 x data 2",
            "`machine.json` is left out: it is of 1 rank, the run of 4",
            "`memory.json` is left out: its ranks are not 0 to 3, each once",
        ];
        assert_eq!(why(), left);
        put("timeline.json", timeline(3, [1, 2, 2]));
        put("memory.json", memory(&[1, 0]));
        let why_now = why();
        assert_eq!(why_now[0], "`timeline.json` is left out: it is of step 3, done at other settings");
        assert_eq!(why_now[2], "`memory.json` is left out: it is of 2 ranks, the run of 4");
        put("timeline.json", timeline(4, [1, 2, 2]));
        put("memory.json", memory(&[1, 0, 3, 2]));
        assert_eq!(why().len(), 1, "{:?}", why());
    }

    #[test]
    fn a_run_that_went_back_is_of_the_steps_done_since() {
        let (dir, read) = went_on();
        let path = dir.path().join("metrics.jsonl");
        let mut line: Value =
            serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
        (line["step"], line["tokens_per_s_per_rank"]) = (9.into(), 64.into());
        let lines = std::fs::read_to_string(&path).unwrap() + &line.to_string();
        std::fs::write(&path, lines).unwrap();
        let run = read().unwrap();
        assert_eq!((run.mesh.ranks(), run.steps.records.len(), run.steps_as_now().count()), (4, 6, 2));
    }

    #[test]
    fn a_run_without_a_step_at_its_settings_is_the_users_mistake() {
        let (dir, read) = went_on();
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let before: Vec<&str> = text.lines().take(3).collect();
        std::fs::write(dir.path().join("metrics.jsonl"), before.join("\n")).unwrap();
        let error = read().err().unwrap().to_string();
        assert!(
            error.contains("no step was done at the settings of its config.toml (tensor 1, pipeline 2, "),
            "{error}"
        );
    }
}
