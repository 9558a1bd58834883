//! Steps that are not finite, and spikes: what is found, said and left alone.

use serde_json::Value;

use crate::common::{Site, engine, finish, metrics, mpirun};

/// A run with the full rate from its first step on.
fn at_once() -> Site {
    Site::new().with("optimizer.warmup_steps", 0)
}

/// A rate that throws the weights far away makes an infinity in the next step, and the step's op is found again.
#[test]
fn the_op_and_layer_of_a_number_that_is_not_finite_are_named() {
    for ranks in [1, 2] {
        let site = at_once().with("optimizer.lr", 1e30).with("optimizer.clip_grad", 0.0);
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

/// The loss of the last step is finite, its update is not, and no further step would show that.
#[test]
fn weights_that_are_not_finite_are_not_published() {
    let site = at_once().with("train.steps", 1).with("optimizer.lr", 1e38).with("optimizer.clip_grad", 1e30);
    let outcome = site.train(mpirun(2));
    let outcome = outcome.refused(1, &["training has diverged, and this step is not saved"]);
    assert!(outcome.stderr.contains("model."), "the tensor is named: {}", outcome.stderr);
    assert!(!site.run().join("checkpoints/latest").exists());
    let left = std::fs::read_dir(site.run().join("checkpoints")).map_or(0, |entries| entries.count());
    assert_eq!(left, 0, "files of the save stay");
}

/// At a rate that makes the loss rise, steps with a spike update nothing; when no other step comes, the run ends.
#[test]
fn spikes_are_skipped_until_there_are_too_many() {
    let site = at_once().with("optimizer.lr", 0.5).with("train.steps", 200).with("checkpoint.interval", 1);
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
        let site = at_once().with("train.steps", 8).with("spike.window", 2).with("spike.threshold", threshold);
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
