//! The time of every rank, by phase and group: `ranks.jsonl`, `timeline.json` and `machine.json` of a run.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Case, Shared, engine, finish, mpirun, set, write_config};

/// A run of five steps at two pipeline stages, sampled every second step. All tests read the same one.
fn run() -> Arc<TempDir> {
    static TRAINED: Shared = Shared::new();
    TRAINED.get(|dir| {
        let mut config = Case::open("parity").config(&dir.join("run"));
        set(&mut config, "train.steps", 5);
        set(&mut config, "parallel.pipeline", 2);
        set(&mut config, "report.interval", 2);
        let config = write_config(dir, "run.toml", &config);
        finish(mpirun(2).arg("train").arg("--config").arg(config)).succeeded();
    })
}

fn numbers(of: &Value) -> Vec<f64> {
    of.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn samples_of_all_ranks_are_kept() {
    let tmp = run();
    let text = std::fs::read_to_string(tmp.path().join("run/ranks.jsonl")).unwrap();
    let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4]);
    for sample in &samples {
        let (seconds, busy) = (numbers(&sample["seconds"]), numbers(&sample["busy"]));
        let phases = sample["phases"].as_object().unwrap();
        // The time of a step does not include the checkpoint's copy and the report.
        let within = |name: &str| !["checkpoint_s", "report_s", "validation_s"].contains(&name);
        for rank in 0..2 {
            let total: f64 = phases.iter().filter(|(name, _)| within(name)).map(|(_, of)| numbers(of)[rank]).sum();
            assert!(total > 0.9 * seconds[rank], "{total} of {} s are in the phases: {sample}", seconds[rank]);
            let waits = sample["waits"].as_object().unwrap().values().map(|of| numbers(of)[rank]).sum::<f64>();
            assert!(busy[rank] > 0.0 && busy[rank] + waits < 1.05 * total, "{sample}");
        }
        for group in ["activations", "gradients", "world"] {
            assert_eq!(numbers(&sample["waits"][group]).len(), 2, "{group}: {sample}");
        }
    }
    let machine = read(&tmp.path().join("run/machine.json"));
    assert_eq!((machine["hosts"].as_array().unwrap().len(), &machine["precision"]), (2, &"f32".into()));
}

#[test]
fn a_timeline_has_the_order_of_the_schedule() {
    let tmp = run();
    let timeline = read(&tmp.path().join("run/timeline.json"));
    assert_eq!(timeline["step"], 4);
    let of = |rank: usize| timeline["ranks"][rank]["stretches"].as_array().unwrap();
    // 1F1B: the first of two stages is one micro-batch ahead; the last runs each backward right after its forward.
    let done = |rank: usize| {
        let works = of(rank).iter().filter(|stretch| stretch["micro_batch"].is_u64());
        let one = |s: &Value| format!("{}{}", if s["what"] == "forward" { "F" } else { "B" }, s["micro_batch"]);
        works.map(one).collect::<Vec<_>>().join(" ")
    };
    let n_mbs = of(0).iter().filter(|stretch| stretch["what"] == "forward").count();
    assert!(n_mbs > 1, "{timeline}");
    let between = (1..n_mbs).map(|mb| format!("F{mb} B{} ", mb - 1)).collect::<String>();
    assert_eq!(done(0), format!("F0 {between}B{}", n_mbs - 1));
    assert_eq!(done(1), (0..n_mbs).map(|mb| format!("F{mb} B{mb}")).collect::<Vec<_>>().join(" "));
    assert!((0..2).all(|rank| of(rank).iter().any(|stretch| stretch["what"] == "optimizer")));
}

#[test]
fn an_interval_of_zero_samples_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = Case::open("parity").config(&tmp.path().join("run"));
    set(&mut config, "train.steps", 2);
    set(&mut config, "report.interval", 0);
    let config = write_config(tmp.path(), "run.toml", &config);
    finish(mpirun(2).arg("train").arg("--config").arg(config)).succeeded();
    let left = |name: &str| std::fs::metadata(tmp.path().join("run").join(name)).map_or(0, |file| file.len());
    assert_eq!((left("ranks.jsonl"), left("timeline.json")), (0, 0));
}

/// `--trace` of a step that the run does not reach is refused, also where no step is left.
#[test]
fn a_trace_of_an_unreached_step_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = Case::open("parity").config(&tmp.path().join("run"));
    set(&mut config, "train.steps", 2);
    let config = write_config(tmp.path(), "run.toml", &config);
    let train = |args: &[&str]| finish(engine().args(["train", "--config"]).arg(&config).args(args));
    train(&[]).succeeded();
    train(&["--trace", "99"])
        .refused(2, &["--trace 99: step 2 is done, which is the last one of train.steps; raise it"]);
    train(&["--trace", "4", "--set", "train.steps=3"]).refused(2, &["--trace 4: this run takes step 3 only"]);
    train(&["--trace", "3", "--set", "train.steps=3"]).succeeded();
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
