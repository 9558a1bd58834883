//! A run that was killed and continued is bit for bit the undisturbed one; at another layout it is the same training.

use super::{Left, Site, apart, apart_and, small, with};
use crate::common::{Running, copy, finish, metrics};
use crate::trajectories::BF16;
use toml::Table;

/// A configuration at TP2 DP2, with a checkpoint every second step.
fn config(site: &Site) -> Table {
    let more = [
        ("parallel.tensor", 2.into()),
        ("train.steps", 4.into()),
        ("optimizer.schedule", "constant".into()),
        ("checkpoint.interval", 2.into()),
    ];
    with(&small(site.tmp.path()), &more)
}

fn steps(site: &Site, name: &str) -> usize {
    metrics(&site.dir(name)).len()
}

mod exhaustive {
    use super::*;

    /// The stream of copies is slow, so steps run while the previous checkpoint is still being copied to the host.
    #[test]
    fn a_killed_run_continues_bit_for_bit() {
        let site = Site::new();
        let config = config(&site);
        let alone = site.run("alone", 4, &config, apart);

        let long = with(&config, &[("train.steps", 1_000.into())]);
        let mut run = Running::start(&mut site.train("cut", 4, &long, apart_and(&[("FAKE_CUDA_SLOW", "2@250")]), &[]));
        let ended = run.wait_until(|_| site.dir("cut").join("checkpoints/latest").exists() && steps(&site, "cut") >= 3);
        assert!(ended.is_none(), "the run ended by itself");
        run.kill();
        finish(&mut site.train("cut", 4, &config, apart, &["--from-step", "2"])).succeeded();
        let mut cut = site.left("cut");
        cut.metrics.truncate(4);
        cut.is_exactly(&alone, "killed and continued");
    }

    #[test]
    fn a_run_continues_at_another_layout() {
        let site = Site::new();
        let alone = site.run("alone", 4, &config(&site), apart);
        for (name, ranks, degrees) in [("pp2", 2, [1, 2]), ("one", 1, [1, 1])] {
            copy(&site.dir("alone"), &site.dir(name));
            let layout = [("parallel.tensor", degrees[0].into()), ("parallel.pipeline", degrees[1].into())];
            let config = with(&config(&site), &layout);
            finish(&mut site.train(name, ranks, &config, apart, &["--from-step", "2"])).succeeded();
            is_near(&site.left(name), &alone, name);
        }
    }
}

#[track_caller]
fn is_near(got: &Left, want: &Left, name: &str) {
    assert_eq!(got.metrics.len(), want.metrics.len(), "{name}");
    for (got, want) in got.metrics.iter().zip(&want.metrics) {
        for (key, bound) in [("loss", BF16.loss), ("grad_norm", BF16.grad_norm), ("lr", 0.0), ("consumed_samples", 0.0)]
        {
            let [is, was] = [got, want].map(|step| step[key].as_f64().unwrap());
            let off = (is / was - 1.0).abs();
            assert!(off <= bound, "{name}, step {}: {key} is {is}, without a stop {was}: {off:.1e}", got["step"]);
        }
    }
}
