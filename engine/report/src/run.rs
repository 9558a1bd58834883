//! Reads the directory of a run. Only `config.toml` and `metrics.jsonl` must be there: a run that was killed, or that
//! an older version wrote, lacks other files.

use super::records::experts::{self, ExpertsRecord};
use super::records::jsonl::Lines;
use super::records::machine::Machine;
use super::records::memory::Memory;
use super::records::metrics::{self, StepRecord};
use super::records::plan::Plan;
use super::records::ranks::{self, Sample};
use super::records::settings::settings;
use super::records::timeline::Timeline;
use super::records::{Found, find};
use engine::config::Config;
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub struct Run {
    /// The path that the user gave.
    pub dir: PathBuf,
    /// The last component of the directory.
    pub name: String,
    pub config: Config,
    pub mesh: Mesh,
    /// The settings that the time of a step depends on, by the configuration as it is now.
    pub settings: String,
    pub machine: Found<Machine>,
    /// At least one ran with these settings.
    pub steps: Lines<StepRecord>,
    /// The samples with these settings.
    pub samples: Lines<Sample>,
    /// The load of the experts; empty for a model without.
    pub experts: Vec<ExpertsRecord>,
    pub timeline: Found<Timeline>,
    pub memory: Found<Memory>,
    pub plan: Found<Plan>,
}

impl Run {
    pub fn read(dir: &Path) -> Result<Run> {
        let [config, metrics] = ["config.toml", "metrics.jsonl"].map(|name| dir.join(name));
        if let Some(missing) = [&config, &metrics].into_iter().find(|path| !path.is_file()) {
            let missing = missing.file_name().expect("as joined").display();
            return Err(Error::user(format!(
                "{}: not a run directory, since it has no {missing}; give the checkpoint.dir of a run",
                dir.display()
            )));
        }
        let text = std::fs::read_to_string(&config).map_err(|e| Error::io(&config, e))?;
        let config = Config::from_resolved(&text).map_err(|e| Error::user(format!("{}: {e}", dir.display())))?;
        let steps = metrics::read(&metrics)?;
        let Some(last) = steps.records.last() else {
            let what = "it has no complete step; report on a run that has finished at least one step";
            return Err(Error::user(format!("{}: {what}", metrics.display())));
        };
        let mesh = current_mesh(&config, &steps.records).ok_or_else(|| no_step(dir, &config, last.ranks()))?;
        let (ranks, settings) = (mesh.ranks(), settings(&config, &mesh));
        let other = |step: &&StepRecord| !ran_with(step, &settings, &mesh);
        let others: BTreeSet<u64> = steps.records.iter().filter(other).map(|step| step.step).collect();
        Ok(Run {
            name: name_of(dir),
            samples: samples_of(dir, &mesh, last.step, &others)?,
            experts: experts::read(dir)?,
            timeline: find(dir, "timeline.json", |timeline: &Timeline| timeline.unfit(&mesh, &others))?,
            machine: find(dir, "machine.json", |machine: &Machine| machine.unfit(ranks))?,
            memory: find(dir, "memory.json", |memory: &Memory| memory.unfit(ranks))?,
            plan: find(dir, "plan.json", |plan: &Plan| plan.unfit(&config, &mesh, &settings))?,
            dir: dir.to_path_buf(),
            config,
            mesh,
            settings,
            steps,
        })
    }

    /// The steps that ran with the current settings, which may have changed when the run was resumed.
    pub fn current_steps(&self) -> impl Iterator<Item = &StepRecord> {
        self.steps.records.iter().filter(|step| ran_with(step, &self.settings, &self.mesh))
    }

    /// Why files were ignored, a sentence each.
    pub fn ignored(&self) -> impl Iterator<Item = &str> {
        let files = [self.timeline.ignored(), self.machine.ignored(), self.memory.ignored(), self.plan.ignored()];
        files.into_iter().flatten()
    }
}

/// Lines of older versions have no settings; of them only the number of ranks is compared.
fn ran_with(step: &StepRecord, settings: &str, mesh: &Mesh) -> bool {
    match step.settings.as_str() {
        "" => step.ranks() == mesh.ranks(),
        own => own == settings,
    }
}

/// The mesh of the newest step that ran with the current configuration. That need not be the last one: a run that
/// resumed with the settings of earlier steps may not have finished a step since.
fn current_mesh(config: &Config, steps: &[StepRecord]) -> Option<Mesh> {
    let mut ranks: Vec<usize> = steps.iter().rev().map(StepRecord::ranks).collect();
    ranks.dedup();
    let has_step = |mesh: &Mesh| {
        let settings = settings(config, mesh);
        steps.iter().any(|step| ran_with(step, &settings, mesh))
    };
    ranks.into_iter().filter_map(|ranks| config.mesh(ranks).ok()).find(has_step)
}

/// The error for a run that resumed with other settings and has not finished a step since. `ranks`: of its last step.
fn no_step(dir: &Path, config: &Config, ranks: usize) -> Error {
    let run = format!("{}: the run of {}", dir.display(), counted(ranks, "rank"));
    let settings = match config.mesh_as_asked(ranks, &run) {
        Ok(mesh) => settings(config, &mesh),
        Err(error) => return error,
    };
    let remedy = "report on it after its next step";
    Error::user(format!(
        "{}: no step has run with the settings of its config.toml ({settings}); {remedy}",
        dir.display()
    ))
}

fn name_of(dir: &Path) -> String {
    let whole = std::fs::canonicalize(dir).unwrap_or(dir.to_path_buf());
    whole.file_name().map_or("/".into(), |name| name.to_string_lossy().into_owned())
}

/// `last`: the last step of the run; later samples are of steps that it abandoned. `others`: the steps that ran with
/// other settings.
fn samples_of(dir: &Path, mesh: &Mesh, last: u64, others: &BTreeSet<u64>) -> Result<Lines<Sample>> {
    let path = dir.join("ranks.jsonl");
    if !path.exists() {
        return Ok(Lines { records: Vec::new(), skipped: Vec::new() });
    }
    let mut samples = ranks::read(&path)?;
    let is_whole = |s: &Sample| {
        let lists = s.phases.values().chain(s.waits.values()).chain([&s.seconds, &s.busy]);
        s.layout == mesh.layout() && lists.map(Vec::len).all(|len| len == mesh.ranks())
    };
    samples.records.retain(|s| is_whole(s) && s.step <= last && !others.contains(&s.step));
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::efficiency::tests::CONFIG;
    use serde_json::{Value, json};

    #[test]
    fn a_directory_that_is_no_run_is_named_with_the_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = || Run::read(dir.path()).err().unwrap().to_string();
        assert!(error().contains("it has no config.toml"), "{}", error());
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        assert!(error().contains("it has no metrics.jsonl"), "{}", error());
        std::fs::write(dir.path().join("metrics.jsonl"), "").unwrap();
        std::fs::write(dir.path().join("config.toml"), b"\x93\xfa").unwrap();
        assert!(matches!(Run::read(dir.path()), Err(Error::User(text)) if text.contains("config.toml")));
    }

    /// A run whose steps 4 and 5 ran with its settings, the three before with others.
    fn resumed() -> (tempfile::TempDir, impl Fn() -> Result<Run>) {
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
    fn files_that_do_not_fit_the_run_are_ignored_with_the_reason() {
        let (dir, read) = resumed();
        let put = |name: &str, of: serde_json::Value| std::fs::write(dir.path().join(name), of.to_string()).unwrap();
        let why = || read().unwrap().ignored().map(String::from).collect::<Vec<_>>();
        assert_eq!((why(), read().unwrap().current_steps().count()), (vec![], 2));
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
        let layouts = "its layout is tensor 4 x pipeline 1 x data 1, the run's is tensor 1 x pipeline 2 x data 2";
        let reasons = [
            &format!("`timeline.json` is ignored: {layouts}"),
            "`machine.json` is ignored: it lists 1 rank, the run has 4",
            "`memory.json` is ignored: it does not list each of ranks 0 to 3 once",
        ];
        assert_eq!(why(), reasons);
        put("timeline.json", timeline(3, [1, 2, 2]));
        put("memory.json", memory(&[1, 0]));
        let now = why();
        assert_eq!(now[0], "`timeline.json` is ignored: its step 3 ran with other settings");
        assert_eq!(now[2], "`memory.json` is ignored: it lists 2 ranks, the run has 4");
        put("timeline.json", timeline(4, [1, 2, 2]));
        put("memory.json", memory(&[1, 0, 3, 2]));
        assert_eq!(why().len(), 1, "{:?}", why());
    }

    #[test]
    fn a_run_that_resumed_with_earlier_settings_has_the_settings_of_now() {
        let (dir, read) = resumed();
        let path = dir.path().join("metrics.jsonl");
        let mut line: Value =
            serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
        (line["step"], line["tokens_per_s_per_rank"]) = (9.into(), 64.into());
        let lines = std::fs::read_to_string(&path).unwrap() + &line.to_string();
        std::fs::write(&path, lines).unwrap();
        let run = read().unwrap();
        assert_eq!((run.mesh.ranks(), run.steps.records.len(), run.current_steps().count()), (4, 6, 2));
    }

    #[test]
    fn a_run_without_a_step_at_its_settings_is_the_users_mistake() {
        let (dir, read) = resumed();
        let text = std::fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
        let before: Vec<&str> = text.lines().take(3).collect();
        std::fs::write(dir.path().join("metrics.jsonl"), before.join("\n")).unwrap();
        let error = read().err().unwrap().to_string();
        assert!(
            error.contains("no step has run with the settings of its config.toml (tensor 1, pipeline 2, "),
            "{error}"
        );
    }
}
