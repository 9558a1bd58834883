//! No result depends on the number of threads, which is the number of cores in the rank's affinity mask.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::{Case, Tensors, export, finish, locally, metrics, set, write_config};

#[test]
fn one_core_and_two_give_the_same_bits() {
    let cores = allowed_cores();
    let Some(second) = cores.get(1) else {
        println!("skipped: this process may use one core only");
        return;
    };
    for (case, precision) in [("gqa_masked", "f32"), ("head_dim_64", "f32"), ("llama3_rope", "bf16")] {
        let one = train(case, precision, &cores[0].to_string());
        let two = train(case, precision, &format!("{},{second}", cores[0]));
        assert_eq!(one.0, two.0, "{case} in {precision}");
        assert!(one.1 == two.1, "{case} in {precision}: the weights differ");
    }
}

/// Trains a golden case on these cores, and returns the metrics of its steps and the last weights.
fn train(case: &str, precision: &str, cores: &str) -> (Vec<[Value; 3]>, Tensors) {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = Case::open(case).config(&run);
    set(&mut config, "train.precision", precision);
    set(&mut config, "train.micro_batch_size", 2);
    let config = write_config(tmp.path(), "config.toml", &config);
    let exe = env!("CARGO_BIN_EXE_swallow-engine");
    finish(locally(Command::new("taskset")).args(["-c", cores, exe, "train", "--config"]).arg(config)).succeeded();
    let rows = metrics(&run).iter().map(|m| ["loss", "grad_norm", "valid_loss"].map(|key| m[key].clone())).collect();
    (rows, export(&run, &tmp.path().join("hf")))
}

/// The cores of this process's affinity mask.
fn allowed_cores() -> Vec<usize> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap();
    let list = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap();
    let number = |s: &str| s.trim().parse::<usize>().unwrap();
    let range = |part: &str| match part.split_once('-') {
        Some((a, b)) => number(a)..=number(b),
        None => number(part)..=number(part),
    };
    list.split(',').flat_map(range).collect()
}
