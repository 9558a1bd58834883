//! A folder in which one fault takes place: its run, the commands that it starts, and what must hold afterwards.

use crate::draw::Draw;
use crate::ensure;
use crate::lab::{Lab, Layout, Reference, STEPS};
use crate::power::{Shadow, keep_all, restore, restore_with_names};
use crate::process::{Outcome, Running, Verdict};
use crate::shim::{self, Shim, Target};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The time after which nothing of a run that ended is left.
pub const GONE: Duration = Duration::from_secs(15);
/// The time of a whole run, on a machine that does other work too.
pub const WHOLE: Duration = Duration::from_secs(60);

/// The loss and the gradient norm of each step.
pub type Metrics = BTreeMap<u64, [Value; 2]>;

pub struct Site<'a> {
    pub lab: &'a Lab,
    pub layout: &'static Layout,
    pub dir: PathBuf,
    pub draw: Draw,
    pub config: toml::Table,
}

impl Site<'_> {
    /// An empty site in the folder `dir`, with copies of the model and the tokens.
    pub fn new<'a>(lab: &'a Lab, layout: &'static Layout, dir: &Path, draw: Draw) -> Site<'a> {
        let mut site = Site { lab, layout, dir: dir.into(), draw, config: toml::Table::new() };
        fs::remove_dir_all(dir).ok();
        ["output", "tmp", "disk", "log", "shadow"].iter().for_each(|name| create(&site.path(name)));
        copy(&lab.golden, &site.path("input"));
        let mut config: toml::Table = include_str!("../run.toml").parse().expect("run.toml is TOML");
        let [init, train, run] = ["input/init", "input/train", "disk/run"].map(|name| site.text(name));
        set(&mut config, "model.hf", init.clone());
        set(&mut config, "train.load", format!("hf:{init}"));
        set(
            &mut config,
            "data.train",
            vec![toml::Value::from(toml::Table::from_iter([("prefix".into(), train.into())]))],
        );
        set(&mut config, "checkpoint.dir", run);
        set(&mut config, "parallel.tensor", layout.tensor as i64);
        set(&mut config, "parallel.pipeline", layout.pipeline as i64);
        site.config = config;
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn run(&self) -> PathBuf {
        self.path("disk/run")
    }

    pub fn set(&mut self, key: &str, value: impl Into<toml::Value>) {
        set(&mut self.config, key, value);
    }

    pub fn reference(&self) -> &Reference {
        self.lab.reference(self.layout)
    }

    /// Copies a run that was stopped at step 10 or 11 and has two checkpoints.
    pub fn adopt_stopped_run(&self) {
        copy(&self.lab.stopped(self.layout), &self.run());
    }

    // Commands.

    /// `mpirun` without a program yet. It starts and ends programs without delay.
    pub fn mpirun(&self) -> Command {
        let mut command = Command::new("mpirun");
        command.env("OMPI_MCA_pml", "ob1").env("OMPI_MCA_odls_base_sigkill_timeout", "2");
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("TMPDIR", self.path("tmp")).current_dir(&self.dir).arg("--oversubscribe");
        command
    }

    /// The run at its layout, started through the programs `with`.
    pub fn train_with(&self, with: &[&str]) -> Command {
        let config = self.path("config.toml");
        fs::write(&config, toml::to_string(&self.config).expect("a table is TOML")).expect("a site can be written");
        let mut command = self.mpirun();
        command.args(["-n", &self.layout.ranks.to_string()]).args(with).arg(&self.lab.engine);
        command.args(["train", "--config"]).arg(config);
        command
    }

    pub fn train(&self) -> Command {
        self.train_with(&[])
    }

    /// The run, whose ranks have `shim`.
    pub fn train_shimmed(&self, shim: &Shim) -> Command {
        let mut command = self.train_with(&["env", &format!("LD_PRELOAD={}", self.lab.shim.display())]);
        self.prepare(shim, &mut command);
        command
    }

    /// A command of the program on one rank, without MPI.
    pub fn engine(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.lab.engine);
        command.args(args).env("TMPDIR", self.path("tmp")).current_dir(&self.dir);
        command
    }

    pub fn engine_shimmed(&self, args: &[&str], shim: &Shim) -> Command {
        let mut command = self.engine(args);
        command.env("LD_PRELOAD", &self.lab.shim);
        self.prepare(shim, &mut command);
        command
    }

    fn prepare(&self, shim: &Shim, command: &mut Command) {
        shim.set(command);
        command.env("SHIM_ROOT", self.path("disk")).env("SHIM_LOG", self.path("log"));
        command.env("SHIM_FORGETS", &self.lab.planted);
        let shadow = self.path("shadow");
        fs::remove_dir_all(&shadow).expect("a site can be written");
        create(&shadow);
        if shim.follows {
            command.env("SHIM_SHADOW", &shadow);
            keep_all(&Shadow(shadow), &self.path("disk")).expect("a shadow can be made");
        }
    }

    pub fn start(&self, mut command: Command) -> Running {
        Running::start(&mut command, &self.dir)
    }

    /// Runs a command to its end.
    pub fn finish(&self, command: Command, limit: Duration) -> Verdict<Outcome> {
        self.start(command).end(limit)
    }

    // Faults.

    /// An operation of an undisturbed run.
    pub fn target(&mut self, files: &str, ops: &str) -> Target {
        let lab = self.lab;
        shim::draw(&mut self.draw, &lab.reference(self.layout).logs, files, ops)
    }

    /// Runs a command whose shim loses the power, kills what is left, and leaves what the disk has. The exit code is 0
    /// where the command ended before.
    pub fn lose_power(&mut self, command: Command) -> Verdict<Outcome> {
        let off = self.path("shadow/off");
        let mut running = self.start(command);
        if !running.wait_until(WHOLE, || off.exists()) {
            running.kill();
        }
        let outcome = running.end(GONE);
        let (disk, left) = (self.path("disk"), self.path("disk-after-power-loss"));
        let shadow = Shadow(self.path("shadow"));
        let restored = match self.draw.index(2) {
            0 => restore(&shadow, &disk, &left),
            _ => restore_with_names(&shadow, &disk, &left),
        };
        restored.map_err(|e| format!("the shadow: {e}"))?;
        // The folder itself may be a mount.
        let entries = fs::read_dir(&disk).expect("a site can be read").flatten();
        entries.for_each(|entry| fs::remove_dir_all(entry.path()).expect("a site can be written"));
        copy(&left, &disk);
        outcome
    }

    // Checks.

    /// The step that `latest` names.
    pub fn latest(&self) -> Option<u64> {
        let name = fs::read_to_string(self.run().join("checkpoints/latest")).ok()?;
        name.trim().strip_prefix("step-")?.parse().ok()
    }

    pub fn metrics(&self) -> Metrics {
        metrics(&self.run())
    }

    pub fn is_verified(&self) -> Verdict {
        let outcome = self.finish(self.engine(&["checkpoint", "verify", &self.text("disk/run")]), WHOLE)?;
        outcome.exits(&[0]).map(|_| ()).map_err(|wrong| format!("checkpoint verify: {wrong}"))
    }

    /// What the run has is sound, and the same command continues from at least step `before` to the results of an
    /// undisturbed run.
    pub fn recovers(&self, before: Option<u64>) -> Verdict {
        if before.is_some() {
            self.is_verified()?;
        }
        let outcome = self.finish(self.train(), WHOLE)?.exits(&[0]).map_err(|w| format!("the same command: {w}"))?;
        let after = outcome.continued_after();
        ensure!(after >= before, "expected: continued after step {before:?}; seen: {after:?}\n{}", outcome.stderr);
        self.is_complete()
    }

    /// The run is done, its results are those of an undisturbed run, and nothing is left over.
    pub fn is_complete(&self) -> Verdict {
        let (seen, expected) = (self.metrics(), &self.reference().metrics);
        for step in 1..=STEPS {
            let (seen, expected) = (seen.get(&step), expected.get(&step));
            ensure!(seen == expected, "expected: loss and norm of step {step} {expected:?}; seen: {seen:?}");
        }
        self.has_same_weights()
    }

    /// The weights are those of an undisturbed run, and nothing is left over.
    pub fn has_same_weights(&self) -> Verdict {
        let weights = self.export("disk/run")?;
        ensure!(weights == self.reference().weights, "expected: the weights of an undisturbed run; seen: others");
        self.nothing_is_left()
    }

    /// The f32 weights of the newest checkpoint of `run`.
    pub fn export(&self, run: &str) -> Verdict<Vec<u8>> {
        let to = self.text("export");
        fs::remove_dir_all(&to).ok();
        let command = self.engine(&["checkpoint", "export", "--from", &self.text(run), "--to", &to, "--dtype", "f32"]);
        self.finish(command, WHOLE)?.exits(&[0]).map_err(|wrong| format!("checkpoint export: {wrong}"))?;
        Ok(fs::read(self.path("export/model.safetensors")).unwrap_or_default())
    }

    /// There are no unfinished files on the disk or in the shared memory.
    pub fn nothing_is_left(&self) -> Verdict {
        let mut left: Vec<PathBuf> = walk(&self.path("disk")).into_iter().filter(|path| is_unfinished(path)).collect();
        let ours = |path: &PathBuf| path.to_string_lossy().contains("swallow-engine");
        left.extend(walk(Path::new("/dev/shm")).into_iter().filter(ours));
        ensure!(left.is_empty(), "expected: nothing left over; seen: {left:?}");
        Ok(())
    }
}

/// Sets `section.key`.
fn set(config: &mut toml::Table, key: &str, value: impl Into<toml::Value>) {
    let (section, key) = key.split_once('.').expect("a section and a key");
    let table = config.entry(section).or_insert_with(|| toml::Table::new().into());
    table.as_table_mut().expect("a table").insert(key.into(), value.into());
}

/// The last line of each step counts, as for all readers of the file.
pub fn metrics(run: &Path) -> Metrics {
    let text = fs::read(run.join("metrics.jsonl")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter_map(|line| Some((line["step"].as_u64()?, ["loss", "grad_norm"].map(|key| line[key].clone()))))
        .collect()
}

/// Whether this is the name of something that is being written, or is going to be removed.
pub fn is_unfinished(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.starts_with('.') || [".tmp", ".partial", ".old"].iter().any(|ending| name.ends_with(ending))
}

/// All files and folders below `dir`.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| [vec![path.clone()], if path.is_dir() { walk(&path) } else { Vec::new() }].concat())
        .collect()
}

pub fn create(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    create(to);
    for path in walk(from) {
        let place = to.join(path.strip_prefix(from).expect("a path below the folder"));
        match path.is_dir() {
            true => create(&place),
            false => _ = fs::copy(&path, place).unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        }
    }
}
