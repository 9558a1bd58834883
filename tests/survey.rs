//! Where the time of every rank goes: what a run leaves of it.

use std::path::Path;

use serde_json::Value;

use crate::common::{Case, finish, mpirun, set, write_config};

/// Two stages, sampled every second step.
fn run(dir: &Path, steps: i64) {
    let mut config = Case::open("parity").config(&dir.join("run"));
    set(&mut config, "train.steps", steps);
    set(&mut config, "parallel.pipeline", 2);
    set(&mut config, "report.interval", 2);
    let config = write_config(dir, "run.toml", &config);
    finish(mpirun(2).arg("train").arg("--config").arg(config)).succeeded();
}

fn numbers(of: &Value) -> Vec<f64> {
    of.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn samples_of_all_ranks_are_kept() {
    let tmp = tempfile::tempdir().unwrap();
    run(tmp.path(), 5);
    let text = std::fs::read_to_string(tmp.path().join("run/ranks.jsonl")).unwrap();
    let samples: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.iter().map(|sample| sample["step"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 4]);
    for sample in &samples {
        let (seconds, busy) = (numbers(&sample["seconds"]), numbers(&sample["busy"]));
        let phases = sample["phases"].as_object().unwrap();
        // The checkpoint's copy and the report are not in the time of the step itself.
        let within = |name: &str| !["checkpoint_s", "report_s", "validation_s"].contains(&name);
        for rank in 0..2 {
            let told: f64 = phases.iter().filter(|(name, _)| within(name)).map(|(_, of)| numbers(of)[rank]).sum();
            assert!((told / seconds[rank] - 1.0).abs() < 0.1, "{told} of {} s are told: {sample}", seconds[rank]);
            let waits = sample["waits"].as_object().unwrap().values().map(|of| numbers(of)[rank]).sum::<f64>();
            assert!(busy[rank] > 0.0 && busy[rank] + waits < 1.05 * seconds[rank], "{sample}");
        }
        // The last stage waits for activations, the first for gradients.
        let waits = |group: &str, rank: usize| numbers(&sample["waits"][group])[rank];
        assert!(waits("activations", 1) > waits("activations", 0), "{sample}");
        assert!(waits("gradients", 0) > waits("gradients", 1), "{sample}");
    }
    let machine: Value = read(&tmp.path().join("run/machine.json"));
    assert_eq!((machine["hosts"].as_array().unwrap().len(), &machine["precision"]), (2, &"f32".into()));
}

#[test]
fn a_timeline_has_the_order_of_the_schedule() {
    let tmp = tempfile::tempdir().unwrap();
    run(tmp.path(), 4);
    let timeline = read(&tmp.path().join("run/timeline.json"));
    assert_eq!(timeline["step"], 4);
    let of = |rank: usize| timeline["ranks"][rank]["stretches"].as_array().unwrap();
    let when = |rank: usize, what: &str, micro_batch: i64| {
        let is = |s: &&Value| s["what"] == what && s["micro_batch"] == micro_batch;
        let it = of(rank).iter().find(is).unwrap_or_else(|| panic!("no {what} of {micro_batch} on rank {rank}"));
        (it["start"].as_f64().unwrap(), it["end"].as_f64().unwrap())
    };
    let n_mbs = of(0).iter().filter(|stretch| stretch["what"] == "forward").count() as i64;
    assert!(n_mbs > 1, "{timeline}");
    for micro_batch in 0..n_mbs {
        let [first, last] = [0, 1].map(|rank| when(rank, "forward", micro_batch));
        let [back, loss] = [0, 1].map(|rank| when(rank, "backward", micro_batch));
        // By clocks that agree where all ranks met: nothing is there before it was sent.
        let slack = 0.05 * timeline["seconds"].as_f64().unwrap();
        assert!(last.1 > first.1 - slack && loss.0 >= last.1 && back.1 > loss.1 - slack, "micro-batch {micro_batch}: {timeline}");
    }
    assert!((0..2).all(|rank| of(rank).iter().any(|stretch| stretch["what"] == "optimizer")));
}

#[test]
fn nothing_is_sampled_where_nobody_asks() {
    let tmp = tempfile::tempdir().unwrap();
    let mut config = Case::open("parity").config(&tmp.path().join("run"));
    set(&mut config, "train.steps", 2);
    set(&mut config, "report.interval", 0);
    let config = write_config(tmp.path(), "run.toml", &config);
    finish(mpirun(2).arg("train").arg("--config").arg(config)).succeeded();
    let left = |name: &str| std::fs::metadata(tmp.path().join("run").join(name)).map_or(0, |file| file.len());
    assert_eq!((left("ranks.jsonl"), left("timeline.json")), (0, 0));
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}
