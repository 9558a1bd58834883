//! `train --dry-run`, and the memory that a run says it was going to take and took.

use std::path::Path;

use serde_json::Value;

use crate::common::{Case, Outcome, engine, finish, metrics, mpirun, set, write_config};

#[track_caller]
fn dry_run(config: &str, more: &[&str]) -> Outcome {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(config);
    finish(engine().args(["train", "--dry-run", "--config"]).arg(path).args(more))
}

#[test]
fn the_dry_run_of_a_large_model_needs_no_data_and_no_device() {
    let Outcome { stdout, .. } = dry_run("swallow-70b.toml", &[]).succeeded();
    for needle in
        ["256 ranks (tensor 8, pipeline 8, data 4) in bf16, 256 micro-batches of 1 x 4096 tokens", "the most: "]
    {
        assert!(stdout.contains(needle), "no `{needle}` in: {stdout}");
    }
    // Twice the data-parallel ranks: half the optimizer and half the micro-batches.
    let Outcome { stdout, .. } = dry_run("swallow-7b.toml", &["--ranks", "128"]).succeeded();
    assert!(stdout.contains("128 ranks"), "{stdout}");
    dry_run("swallow-7b.toml", &["--ranks", "7"]).refused(2, &["7"]);
}

#[test]
fn mpirun_says_how_many_ranks_a_dry_run_has() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.toml");
    let Outcome { stdout, .. } = finish(mpirun(2).args(["train", "--dry-run", "--config"]).arg(config)).succeeded();
    assert_eq!(stdout.matches("2 ranks (tensor 1, pipeline 1, data 2) in f32").count(), 1, "{stdout}");
}

#[test]
fn a_run_takes_what_it_planned() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let case = Case::open("gqa_masked");
    let mut config = case.config(&run);
    set(&mut config, "parallel.tensor", 2);
    set(&mut config, "parallel.pipeline", 2);
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(mpirun(4).args(["train", "--config"]).arg(config)).succeeded();
    assert!(!metrics(&run).is_empty());
    let memory: Value = serde_json::from_str(&std::fs::read_to_string(run.join("memory.json")).unwrap()).unwrap();
    let ranks = memory["ranks"].as_array().unwrap();
    assert_eq!(ranks.iter().map(|rank| rank["rank"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for rank in ranks {
        assert!(rank["used"]["peak_bytes"].as_u64().unwrap() > 0);
        assert_eq!(rank["planned"], rank["used"], "{rank}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_built() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = Case::open("gqa_masked").config(&tmp.path().join("run"));
    set(&mut config, "train.load", "random");
    for (key, value) in [("hidden_size", 65536), ("intermediate_size", 1 << 20), ("num_hidden_layers", 1000)] {
        set(&mut config, &format!("model.{key}"), value);
    }
    let config = write_config(tmp.path(), "config.toml", &config);
    let needles = ["[model]:", "GiB for the 1 rank of this machine", "take a smaller model"];
    finish(engine().args(["train", "--config"]).arg(config)).refused(2, &needles);
}
