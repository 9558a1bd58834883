//! `train --dry-run`, and the memory that a run planned and used.

use std::path::Path;

use serde_json::Value;

use crate::common::{Case, Outcome, engine, finish, metrics, mpirun, set, write_config};

#[track_caller]
fn dry_run(config: &str, more: &[&str]) -> Outcome {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(config);
    finish(engine().args(["train", "--dry-run", "--config"]).arg(path).args(more))
}

mod exhaustive {
    use super::*;

    #[test]
    fn the_dry_run_of_a_large_model_needs_no_data_and_no_device() {
        let Outcome { stdout, .. } = dry_run("swallow-70b.toml", &[]).succeeded();
        for needle in
            ["256 ranks (tensor 8, pipeline 8, data 4) in bf16, 256 micro-batches of 1 x 4096 tokens", "the most: "]
        {
            assert!(stdout.contains(needle), "no `{needle}` in: {stdout}");
        }
        // Each stage passes 256 micro-batches through 10 layers; the first has the embedding, the last the head.
        let row = |name: &str| {
            let line = stdout.lines().find(|line| line.starts_with(&format!("│ {name} "))).unwrap_or("");
            line.split(['│', '┆'])
                .map(|cell| cell.trim().to_string())
                .filter(|cell| !cell.is_empty())
                .collect::<Vec<_>>()
        };
        assert_eq!(row("ops a step"), ["ops a step", "stage 0", "stage 1-6", "stage 7"]);
        assert_eq!(row("attention"), ["attention", "2560", "2560", "2560"]);
        // The head gathers the rows of the counted targets, and puts their gradients back.
        assert_eq!(row("embed"), ["embed", "256", "0", "512"]);
        // Twice the data-parallel ranks hold half the optimizer's state each, and take half the micro-batches.
        let Outcome { stdout, .. } = dry_run("swallow-7b.toml", &["--ranks", "128"]).succeeded();
        assert!(stdout.contains("128 ranks"), "{stdout}");
    }

    /// The layouts of the families' files are for nodes of A100 with 40 GB.
    #[test]
    fn every_family_fits_a100_of_40_gb() {
        let cluster = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/clusters/abci-a100-40.toml");
        let files =
            ["swallow-ms-7b", "qwen2.5-7b", "qwen3-8b", "gemma-2-9b", "llm-jp-3-13b", "llm-jp-4-8b", "llm-jp-13b-v1"];
        for name in files {
            let Outcome { stdout, .. } = dry_run(&format!("{name}.toml"), &["--cluster", cluster]).succeeded();
            assert!(stdout.contains("GiB of the 39.50 GiB of a GPU are left"), "{name}: {stdout}");
        }
    }
}

/// The dry run follows the backend that the configuration names, on the GPU that the cluster's file names.
#[test]
fn a_dry_run_plans_the_arena_of_a_gpu_that_is_not_there() {
    let clusters = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/clusters");
    let on = |cluster: &str, more: &[&str]| {
        let cluster = format!("{clusters}/{cluster}.toml");
        dry_run("swallow-7b.toml", &[&["--cluster", &cluster], more].concat())
    };
    let a100 = on("abci-a100-40", &[]).succeeded().stdout;
    for needle in
        ["the most: an arena of ", "are lost to fragmentation", "on NVIDIA A100-SXM4-40GB with 108 multiprocessors"]
    {
        assert!(a100.contains(needle), "no `{needle}` in: {a100}");
    }
    assert!(a100.contains("GiB of the 39.50 GiB of a GPU are left"), "{a100}");
    let h100 = on("dgx-h100", &[]).succeeded().stdout;
    assert!(h100.contains("on NVIDIA H100 80GB HBM3 with 132 multiprocessors"), "{h100}");
    let large = on("abci-a100-40", &["--set", "train.micro_batch_size=16"]).succeeded().stdout;
    for needle in
        ["ABCI (A): this run needs ", "39.50 GiB are available; what fits on 64 ranks: ", "train.micro_batch_size = "]
    {
        assert!(large.contains(needle), "no `{needle}` in: {large}");
    }
    on("abci-a100-40", &["--set", "report.cluster=\"nothing.toml\""]).refused(2, &["report.cluster", "nothing.toml"]);
    on("abci-a100-40", &["--set", "train.backend=\"cpu\""]).refused(2, &["--cluster ", "leave one of the two out"]);
    on("h200", &[]).refused(2, &["64 ranks take 64 nodes with 1 a node"]);
}

#[test]
fn messages_about_ranks_name_where_they_were_set() {
    dry_run("swallow-7b.toml", &["--ranks", "7"]).refused(2, &["--ranks 7: parallel.tensor 2", "4 or 8"]);
    for ranks in ["18446744073709551615", "99999999999999999999", "0", "1048577"] {
        dry_run("swallow-7b.toml", &["--ranks", ranks]).refused(2, &[ranks, "--ranks"]);
    }
    let wrong = ["--ranks", "8", "--set", "parallel.tensor=3"];
    dry_run("swallow-7b.toml", &wrong).refused(2, &["parallel.tensor = 3", "on 8 ranks the nearest are 2 and 4"]);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/swallow-7b.toml");
    finish(mpirun(2).args(["train", "--dry-run", "--config"]).arg(config)).refused(2, &["mpirun -n 2: "]);
}

#[test]
fn mpirun_says_how_many_ranks_a_dry_run_has() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny.toml");
    let Outcome { stdout, .. } = finish(mpirun(2).args(["train", "--dry-run", "--config"]).arg(config)).succeeded();
    assert_eq!(stdout.matches("2 ranks (tensor 1, pipeline 1, data 2) in f32").count(), 1, "{stdout}");
}

/// The entries of `memory.json` for four ranks, two of them tensor parallel, at `layout`.
#[track_caller]
fn memory(layout: &[(&str, toml::Value)]) -> Vec<Value> {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let case = Case::open("gqa_masked");
    let mut config = case.config(&run);
    set(&mut config, "parallel.tensor", 2);
    layout.iter().for_each(|(key, value)| set(&mut config, key, value.clone()));
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(mpirun(4).args(["train", "--config"]).arg(config)).succeeded();
    assert!(!metrics(&run).is_empty());
    let memory: Value = serde_json::from_str(&std::fs::read_to_string(run.join("memory.json")).unwrap()).unwrap();
    let ranks = memory["ranks"].as_array().unwrap().clone();
    assert_eq!(ranks.iter().map(|rank| rank["rank"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    ranks
}

/// A rank uses the blocks that were planned. A checkpoint's copies are the main parameters and moments in f32, each
/// element on one rank.
#[test]
fn a_run_uses_the_memory_that_it_planned() {
    // Embedding and head, the last norm, and in each layer q and o, k and v, the MLP, two norms.
    let parameters = 2 * 97 * 48 + 48 + 3 * (2 * 48 * 48 + 2 * 12 * 48 + 3 * 80 * 48 + 2 * 48);
    for layout in [
        &[("parallel.pipeline", 2.into())][..],
        &[("parallel.distributed_optimizer", true.into())],
        &[("parallel.distributed_optimizer", false.into())],
    ] {
        let ranks = memory(layout);
        for rank in &ranks {
            assert!(rank["used"]["peak_bytes"].as_u64().unwrap() > 0);
            assert_eq!(rank["planned"], rank["used"], "{layout:?}: {rank}");
        }
        let copies: Vec<u64> =
            ranks.iter().map(|rank| rank["used"]["checkpoint_copy_bytes"].as_u64().unwrap()).collect();
        assert_eq!(copies.iter().sum::<u64>(), 12 * parameters, "{layout:?}: {copies:?}");
        // Where both data-parallel ranks hold everything, the first one saves.
        let first_alone = layout[0] == ("parallel.distributed_optimizer", false.into());
        assert_eq!(copies[2..] == [0, 0], first_alone, "{copies:?}");
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
    let needles = ["[model]:", "GiB for the 1 rank of this machine", "use a smaller model"];
    finish(engine().args(["train", "--config"]).arg(config)).refused(2, &needles);
}
