//! Steps that are not finite, and spikes: what is found, said and left alone.

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::common::{Case, Outcome, engine, finish, metrics, mpirun, set, write_config};

struct Site {
    tmp: TempDir,
    config: Table,
}

impl Site {
    fn new() -> Site {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = Case::open("mha_odd_vocab").config(&tmp.path().join("run"));
        set(&mut config, "train.eval_interval", 0);
        set(&mut config, "optimizer.warmup_steps", 0);
        set(&mut config, "optimizer.schedule", "constant");
        Site { tmp, config }
    }

    fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Site {
        set(&mut self.config, key, value);
        self
    }

    fn run(&self) -> PathBuf {
        self.tmp.path().join("run")
    }

    fn train(&self, mut start: std::process::Command) -> Outcome {
        finish(start.args(["train", "--config"]).arg(write_config(self.tmp.path(), "config.toml", &self.config)))
    }

    fn manifest(&self, step: u64) -> Value {
        let path = self.run().join(format!("checkpoints/step-{step:08}/manifest.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

/// A rate that throws the weights far away makes an infinity in the next step, and the step's op is found again.
#[test]
fn the_op_and_layer_of_a_number_that_is_not_finite_are_named() {
    for ranks in [1, 2] {
        let site = Site::new().with("optimizer.lr", 1e30).with("optimizer.clip_grad", 0.0);
        let site = site.with("parallel.tensor", ranks).with("checkpoint.interval", 1);
        let outcome = site.train(mpirun(ranks as usize));
        let outcome = outcome.refused(1, &["training has diverged", "the step updated nothing"]);
        let found = "the first number that is not finite came from ";
        let (_, place) = outcome.stderr.split_once(found).unwrap_or_else(|| panic!("{}", outcome.stderr));
        let place = place.split(';').next().unwrap();
        assert!(place.contains(" in ") && place.contains(", forward of micro-batch 0 on rank "), "{place}");
        // The checkpoint of the step before is the newest, and sound.
        finish(engine().args(["checkpoint", "verify"]).arg(site.run())).succeeded();
    }
}

/// At a rate that makes the loss rise, steps with a spike update nothing; when no other step comes, the run ends.
#[test]
fn spikes_are_skipped_until_there_are_too_many() {
    let site = Site::new().with("optimizer.lr", 0.5).with("train.steps", 200).with("checkpoint.interval", 1);
    let site = site.with("spike.window", 4).with("spike.threshold", 1.5).with("spike.action", "skip");
    let outcome = site.train(engine());
    let outcome =
        outcome.refused(1, &["the last 4 steps were all skipped as spikes", "is a spike", "data inspect --step"]);
    let steps = metrics(&site.run());
    let skipped: Vec<&Value> = steps.iter().filter(|step| step["skipped"] == true).collect();
    assert!(skipped.len() >= 4 && steps[..4].iter().all(|step| step.get("spike").is_none()), "{steps:?}");
    assert!(skipped.iter().all(|step| step["spike"] == "loss" || step["spike"] == "grad_norm"));
    let last = steps.last().unwrap()["step"].as_u64().unwrap();
    assert!(outcome.stderr.contains(&format!("step {last} of 200 is done")), "{}", outcome.stderr);

    // A checkpoint has the last accepted steps, the oldest first.
    let before = last - 1;
    let accepted: Vec<f64> =
        steps.iter().filter(|step| step.get("spike").is_none()).map(|s| s["loss"].as_f64().unwrap()).collect();
    let kept = site.manifest(before)["accepted"]["losses"].as_array().unwrap().clone();
    assert_eq!(kept.len(), 4);
    for (kept, loss) in kept.iter().zip(&accepted[accepted.len() - 4..]) {
        assert!((kept.as_f64().unwrap() / loss - 1.0).abs() < 1e-6, "{kept} {loss}");
    }
}

/// Spikes that are only logged change nothing.
#[test]
fn spikes_that_are_logged_leave_the_run_as_it_is() {
    let losses = |threshold: f64| {
        let site = Site::new().with("train.steps", 8).with("spike.window", 2).with("spike.threshold", threshold);
        site.train(engine()).succeeded();
        let steps = metrics(&site.run());
        let spikes = steps.iter().filter(|step| step.get("spike").is_some()).count();
        (steps.iter().map(|step| step["loss"].clone()).collect::<Vec<_>>(), spikes)
    };
    let (with, spikes) = losses(0.01);
    let (without, none) = losses(0.0);
    assert_eq!((with, none), (without, 0));
    assert!(spikes > 0, "the threshold finds some");
}
