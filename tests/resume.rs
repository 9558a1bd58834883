//! A run that was stopped continues bit for bit as if it had not stopped; a changed model or plan is refused; damage in
//! a checkpoint is named.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::common::{
    Case, Outcome, Running, Shared, copy, engine, export, fake_cuda, finish, metrics, mpirun, set, write_config,
};

/// Across the border of two stages, with two validation sets.
#[test]
fn killed_twice_on_two_ranks_continues_bit_for_bit() {
    let staged = |run: &Path| {
        let mut config = Case::open("two_stages").config(run);
        let first = config["data"]["stage"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
        first.insert("until_step".into(), 70.into());
        set(&mut config, "data.order", "megatron");
        config
    };
    killed_twice(|| mpirun(2), staged, 4, |_| true);
}

fn one_mixture(run: &Path) -> Table {
    Case::open("mha_odd_vocab").config(run)
}

mod exhaustive {
    use super::*;

    #[test]
    fn killed_twice_continues_bit_for_bit() {
        killed_twice(engine, one_mixture, 4, |_| true);
    }

    #[test]
    fn killed_while_a_checkpoint_is_written_continues_bit_for_bit() {
        killed_twice(
            || mpirun(2),
            one_mixture,
            1,
            |run| {
                let names = std::fs::read_dir(run.join("checkpoints"))
                    .into_iter()
                    .flatten()
                    .filter_map(|e| Some(e.ok()?.file_name()));
                names.into_iter().any(|name| name.to_string_lossy().starts_with(".step-"))
            },
        );
    }
}

/// Trains once undisturbed and once with two power cuts, each at the next good `moment` after a random step, and
/// compares everything.
fn killed_twice(
    start: impl Fn() -> Command,
    config: impl Fn(&Path) -> Table,
    interval: i64,
    moment: impl Fn(&Path) -> bool,
) {
    let tmp = tempfile::tempdir().unwrap();
    let [alone, cut] = ["alone", "cut"].map(|name| {
        let mut config = config(&tmp.path().join(name));
        set(&mut config, "train.steps", 150);
        set(&mut config, "checkpoint.interval", interval);
        set(&mut config, "checkpoint.keep", 2);
        (tmp.path().join(name), write_config(tmp.path(), &format!("{name}.toml"), &config))
    });
    finish(start().args(["train", "--config"]).arg(&alone.1)).succeeded();
    for steps in [5 + random(40), 60 + random(50)] {
        let mut run = Running::start(start().args(["train", "--config"]).arg(&cut.1));
        let ended = run.wait_until(|_| metrics(&cut.0).len() >= steps && moment(&cut.0));
        assert!(ended.is_none(), "the run ended before step {steps}");
        run.kill();
        if cut.0.join("checkpoints/latest").exists() {
            finish(engine().args(["checkpoint", "verify"]).arg(&cut.0)).succeeded();
        }
    }
    finish(start().args(["train", "--config"]).arg(&cut.1)).succeeded();

    let (want, got) = (metrics(&alone.0), metrics(&cut.0));
    assert_eq!(got.len(), 150);
    for (want, got) in want.iter().zip(&got) {
        for key in ["step", "loss", "grad_norm", "lr", "valid_loss", "valid", "tokens", "consumed_samples"] {
            assert_eq!(want.get(key), got.get(key), "{key} of step {}", want["step"]);
        }
    }
    assert!(export(&alone.0, &tmp.path().join("a")) == export(&cut.0, &tmp.path().join("b")), "the weights differ");
}

/// A number below `n` that differs from call to call.
fn random(n: usize) -> usize {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos() as usize / 1000 % n
}

/// A run of a golden case with checkpoints at steps 5, 10 and 14: a copy of one that all tests share.
struct Run {
    tmp: TempDir,
    case: Case,
    _trained: Arc<TempDir>,
}

impl Run {
    fn new() -> Run {
        static TRAINED: Shared = Shared::new();
        let case = Case::open("head_dim_128");
        let trained = TRAINED.get(|dir| {
            let config = write_config(dir, "config.toml", &config(&case, &dir.join("run")));
            finish(engine().args(["train", "--config"]).arg(config)).succeeded();
        });
        let run = Run { tmp: tempfile::tempdir().unwrap(), case, _trained: trained.clone() };
        copy(&trained.path().join("run"), &run.dir());
        run
    }

    fn dir(&self) -> PathBuf {
        self.tmp.path().join("run")
    }

    fn config(&self) -> Table {
        config(&self.case, &self.dir())
    }

    /// Trains or continues, with a changed configuration and more arguments.
    fn train(&self, change: impl Fn(&mut Table), args: &[&str]) -> Outcome {
        let mut config = self.config();
        change(&mut config);
        let path = write_config(self.tmp.path(), "config.toml", &config);
        finish(engine().args(["train", "--config"]).arg(path).args(args))
    }

    /// The first shard of the checkpoint of step 14.
    fn shard(&self) -> PathBuf {
        let dir = self.dir().join("checkpoints/step-00000014");
        let mut files = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
        files.sort();
        files.swap_remove(0)
    }
}

fn config(case: &Case, run: &Path) -> Table {
    let mut config = case.config(run);
    set(&mut config, "checkpoint.interval", 5);
    config
}

#[test]
fn a_run_that_is_done_does_nothing_more() {
    let run = Run::new();
    let before = std::fs::read(run.dir().join("metrics.jsonl")).unwrap();
    run.train(|_| (), &[]).succeeded();
    assert_eq!(std::fs::read(run.dir().join("metrics.jsonl")).unwrap(), before);
}

/// This holds on a device too, where a step's line is written while the next step runs.
#[test]
fn a_run_that_keeps_nothing_writes_every_step() {
    for on_cuda in [false, true] {
        let (run, fake_cuda) = (tempfile::tempdir().unwrap(), fake_cuda());
        let mut config = Case::open("head_dim_128").config(&run.path().join("run"));
        set(&mut config, "checkpoint.at_end", false);
        set(&mut config, "train.steps", 3);
        if on_cuda {
            set(&mut config, "train.backend", "cuda");
            set(&mut config, "train.precision", "bf16");
        }
        let config = write_config(run.path(), "config.toml", &config);
        finish(fake_cuda.on(engine().args(["train", "--config"]).arg(config))).succeeded();
        let run = run.path().join("run");
        assert_eq!(metrics(&run).len(), 3);
        assert!(!run.join("checkpoints").exists());
        let memory: Value = serde_json::from_slice(&std::fs::read(run.join("memory.json")).unwrap()).unwrap();
        let [planned, used] = ["planned", "used"].map(|key| &memory["ranks"][0][key]["checkpoint_copy_bytes"]);
        assert_eq!((planned, used), (&Value::from(0), &Value::from(0)));
    }
}

#[test]
fn another_model_or_plan_is_refused_with_the_difference() {
    let run = Run::new();
    run.train(|c| set(c, "model.rms_norm_eps", 1e-6), &[]).refused(2, &["rms_norm_eps"]);
    run.train(|c| set(c, "model.rope_theta", 5000.0), &[]).refused(2, &["rope_theta", "10000", "5000"]);
    run.train(|c| set(c, "train.seq_length", 64), &[]).refused(2, &["seq_length", "65", "64"]);
    run.train(|c| set(c, "train.global_batch_size", 4), &[]).refused(2, &["global_batch_size", "8", "4"]);
    run.train(|c| set(c, "train.seed", 77), &[]).refused(2, &["seed", "77"]);
    let other = Case::open("tied_z_loss").dir.join("train");
    let swap = |c: &mut Table| {
        let source = Table::from_iter([("prefix".to_string(), other.to_str().unwrap().into())]);
        set(c, "data.train", vec![toml::Value::from(source)]);
        set(c, "train.steps", 16);
    };
    run.train(swap, &[]).refused(2, &["data", other.to_str().unwrap()]);
    run.train(|c| set(c, "data.order", "megatron"), &[]).refused(2, &["order", "megatron"]);
    run.train(|c| set(c, "data.order", "megatron"), &["--accept-data-change"]).succeeded();
}

#[test]
fn steps_rates_and_micro_batches_may_change() {
    let run = Run::new();
    let longer = |c: &mut Table| {
        set(c, "train.steps", 18);
        set(c, "train.micro_batch_size", 4);
        set(c, "optimizer.lr", 1e-3);
        set(c, "optimizer.schedule", "constant");
    };
    run.train(longer, &[]).succeeded();
    let last = metrics(&run.dir()).pop().unwrap();
    assert_eq!((last["step"].as_u64(), last["lr"].as_f64()), (Some(18), Some(1e-3)));
}

/// A run that continues with another number of ranks still follows the golden trajectory.
#[test]
fn ranks_may_change() {
    let run = Run::new();
    let config = write_config(run.tmp.path(), "config.toml", &run.config());
    finish(mpirun(4).args(["train", "--from-step", "5", "--config"]).arg(config)).succeeded();
    let text = std::fs::read_to_string(run.dir().join("metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 14 + 9, "steps 6 to 14 were trained twice");
    for (got, want) in metrics(&run.dir()).iter().zip(run.case.steps()) {
        let loss = |row: &Value| row["loss"].as_f64().unwrap();
        assert!((loss(got) / loss(want) - 1.0).abs() < 2e-5, "{got} {want}");
    }
}

/// A job script that says `--from-step` goes back once, and so does one that stops before its first save.
#[test]
fn going_back_is_remembered() {
    let run = Run::new();
    let steps = |n: i64| move |c: &mut Table| set(c, "train.steps", n);
    let last = || {
        let text = std::fs::read_to_string(run.dir().join("metrics.jsonl")).unwrap();
        serde_json::from_str::<Value>(text.lines().last().unwrap()).unwrap()["step"].as_u64().unwrap()
    };
    run.train(|c| set(c, "data.order", "megatron"), &["--from-step", "5"]).refused(2, &["order"]);
    let latest = || std::fs::read_to_string(run.dir().join("checkpoints/latest")).unwrap();
    assert_eq!(latest(), "step-00000014\n", "a run that is refused does not go back");
    let nothing_saved = |c: &mut Table| {
        set(c, "train.steps", 7);
        set(c, "checkpoint.interval", 0);
        set(c, "checkpoint.at_end", false);
    };
    run.train(nothing_saved, &["--from-step", "5"]).succeeded();
    assert_eq!((latest(), last()), ("step-00000005\n".to_string(), 7));
    let outcome = run.train(steps(8), &["--from-step", "5"]).succeeded();
    assert!(outcome.stderr.contains("went back to that step before"), "{}", outcome.stderr);
    assert_eq!((latest(), last()), ("step-00000008\n".to_string(), 8));
    let outcome = run.train(steps(9), &["--from-step", "5"]).succeeded();
    assert!(outcome.stderr.contains("continuing") && outcome.stderr.contains("after step 8"), "{}", outcome.stderr);
    let outcome = run.train(steps(9), &["--from-step", "5", "--again"]).succeeded();
    assert!(outcome.stderr.contains("after step 5"), "{}", outcome.stderr);
    // The newest one is remembered, too.
    run.train(steps(10), &["--from-step", "9"]).succeeded();
    let outcome = run.train(steps(11), &["--from-step", "9"]).succeeded();
    assert!(outcome.stderr.contains("after step 10"), "{}", outcome.stderr);
}

#[test]
fn a_torn_line_of_metrics_is_closed() {
    let run = Run::new();
    let mut file = std::fs::File::options().append(true).open(run.dir().join("metrics.jsonl")).unwrap();
    file.write_all(b"{\"step\": 15, \"lo").unwrap();
    run.train(|c| set(c, "train.steps", 16), &[]).succeeded();
    assert_eq!(metrics(&run.dir()).len(), 16);
}

#[test]
fn a_damaged_shard_is_named_and_refused() {
    let run = Run::new();
    let longer = |c: &mut Table| set(c, "train.steps", 15);
    let shard = run.shard();
    let whole = std::fs::read(&shard).unwrap();
    let name = shard.file_name().unwrap().to_str().unwrap();

    let mut flipped = whole.clone();
    flipped[whole.len() * 2 / 3] ^= 1;
    let torn = &whole[..whole.len() - 5];
    let mut header = whole.clone();
    header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for damaged in [&flipped, torn, &header, b""] {
        std::fs::write(&shard, damaged).unwrap();
        refused(run.train(longer, &[]), name);
        refused(finish(engine().args(["checkpoint", "verify"]).arg(run.dir())), name);
    }
    std::fs::remove_file(&shard).unwrap();
    run.train(longer, &[]).refused(2, &[name, "the file is missing; written by rank 0 (tp 0, pp 0, dp 0) on "]);

    // The previous checkpoint is used only when asked for.
    run.train(longer, &["--from-step", "10"]).succeeded();
    assert_eq!(metrics(&run.dir()).len(), 15);
    finish(engine().args(["checkpoint", "verify"]).arg(run.dir())).succeeded();
}

/// Expects exit 1 or 2 with a message that names `file`, and no panic.
#[track_caller]
fn refused(outcome: Outcome, file: &str) {
    let code = outcome.status.code();
    assert!(matches!(code, Some(1 | 2)), "{outcome:?}");
    outcome.refused(code.unwrap(), &[file]);
}

#[test]
fn a_broken_manifest_or_latest_is_named() {
    let run = Run::new();
    let longer = |c: &mut Table| set(c, "train.steps", 15);
    let checkpoints = run.dir().join("checkpoints");
    let manifest = checkpoints.join("step-00000014/manifest.json");
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    refused(run.train(longer, &[]), "manifest.json");
    std::fs::write(&manifest, whole).unwrap();
    refused(run.train(longer, &["--from-step", "7"]), "7");
    std::fs::write(checkpoints.join("latest"), "step-00000999\n").unwrap();
    let outcome = run.train(longer, &[]).succeeded();
    assert!(outcome.stderr.contains("step-00000999\" does not exist; the run continues from step-00000014"));
    assert_eq!(std::fs::read_to_string(checkpoints.join("latest")).unwrap(), "step-00000015\n");
}

/// Damage is refused unless the user allows to fall back, and then every rank goes back to the same step.
#[test]
fn a_damaged_checkpoint_is_fallen_back_from_when_asked_for() {
    let run = Run::new();
    let mut bytes = std::fs::read(run.shard()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(run.shard(), bytes).unwrap();
    let mut config = run.config();
    set(&mut config, "train.steps", 15);
    set(&mut config, "checkpoint.keep", 1);
    let config = write_config(run.tmp.path(), "config.toml", &config);
    let train = |more: &[&str]| finish(mpirun(2).args(["train", "--config"]).arg(&config).args(more));
    train(&[]).refused(2, &["step-00000014/rank-00000-0.safetensors", "train --fall-back"]);
    let outcome = train(&["--fall-back"]).succeeded();
    let warned = "warning: ";
    let lines: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with(warned)).collect();
    assert!(lines[0].contains("its bytes do not match the manifest's checksum"), "{lines:?}");
    assert!(lines[0].ends_with("step-00000014.damaged, and the run goes back to step 10"), "{lines:?}");
    assert!(outcome.stderr.contains("after step 10"), "{}", outcome.stderr);
    assert_eq!(metrics(&run.dir()).len(), 15);
    let checkpoints = run.dir().join("checkpoints");
    let mut names: Vec<_> = std::fs::read_dir(checkpoints).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["latest", "step-00000014.damaged", "step-00000015"]);
}

/// The folder of a checkpoint that a killed run did not finish is not a checkpoint.
#[test]
fn a_run_without_a_complete_checkpoint_starts_over() {
    let run = Run::new();
    std::fs::remove_dir_all(run.dir().join("checkpoints")).unwrap();
    run.train(|c| set(c, "train.steps", 3), &[]).succeeded();
    let lines = std::fs::read_to_string(run.dir().join("metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 14 + 3);
    assert!(is_dir(&run.dir(), "checkpoints/step-00000003"));
}

fn is_dir(run: &Path, path: &str) -> bool {
    run.join(path).is_dir()
}

#[test]
fn a_run_that_has_its_steps_says_so_and_does_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = Case::open("mha_odd_vocab").config(&tmp.path().join("run"));
    for (steps, said) in [
        (2, ""),
        (2, "step 2 is done, which is the last one of train.steps; raise it to train on"),
        (1, "step 2 is done, and train.steps = 1; raise it to train on"),
    ] {
        set(&mut config, "train.steps", steps);
        let config = write_config(tmp.path(), "config.toml", &config);
        let outcome = finish(engine().args(["train", "--config"]).arg(config)).succeeded();
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(metrics(&tmp.path().join("run")).len(), 2);
    }
}

/// The checkpoint is whole, and the run goes on with it, but its reports will have gaps.
#[test]
fn metrics_that_lack_steps_are_named_when_a_run_continues() {
    let run = Run::new();
    let path = run.dir().join("metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let left = text.lines().enumerate().filter(|(i, _)| ![2, 6, 7, 8].contains(i));
    let left: Vec<&str> = left.map(|(i, line)| if i == 11 { "{\"step\": 12" } else { line }).collect();
    std::fs::write(&path, left.join("\n") + "\n").unwrap();
    let outcome = run.train(|config| set(config, "train.steps", 15), &[]).succeeded();
    let lacks = "metrics.jsonl: 5 of the 14 steps before this start are missing (step 3, 7 to 9, 12); the file has 1 \
                 damaged line; reports leave them out";
    assert!(outcome.stderr.contains(lacks), "{}", outcome.stderr);
}
