//! A run that stops at one layout and continues at another trains as if it had not stopped; at the same layout, bit for
//! bit.

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Case, copy, distance, engine, export, finish, metrics, mpirun, read_tensors, set, write_config};

/// The number of ranks, and the degrees tensor, pipeline and virtual pipeline.
type Layout = (usize, [i64; 3]);

/// TP2 PP2 DP2.
const CUBE: Layout = (8, [2, 2, 1]);

/// Runs of the golden case for layouts, with a checkpoint at step 3 of 6.
struct Runs {
    tmp: TempDir,
    case: Case,
}

impl Runs {
    fn new() -> Runs {
        Runs { tmp: tempfile::tempdir().unwrap(), case: Case::open("parity") }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// Trains run `name`, or continues it from the step that `args` name.
    fn train(&self, name: &str, (ranks, degrees): Layout, args: &[&str]) -> Vec<Value> {
        let mut config = self.case.config(&self.dir(name));
        set(&mut config, "train.steps", 6);
        set(&mut config, "checkpoint.interval", 3);
        let keys = ["parallel.tensor", "parallel.pipeline", "parallel.virtual_pipeline"];
        keys.into_iter().zip(degrees).for_each(|(key, degree)| set(&mut config, key, degree));
        let config = write_config(self.tmp.path(), &format!("{name}.toml"), &config);
        let mut command = if ranks == 1 { engine() } else { mpirun(ranks) };
        finish(command.args(["train", "--config"]).arg(config).args(args)).succeeded();
        let metrics = metrics(&self.dir(name));
        assert_eq!(metrics.len(), 6, "{name}");
        metrics
    }

    fn weights(&self, name: &str) -> crate::common::Tensors {
        export(&self.dir(name), &self.dir(&format!("{name}-hf")))
    }
}

mod exhaustive {
    use super::*;

    #[test]
    fn two_runs_of_a_layout_are_the_same_bit_for_bit() {
        let runs = Runs::new();
        let [a, b] = ["a", "b"].map(|name| runs.train(name, CUBE, &[]));
        for (a, b) in a.iter().zip(&b) {
            for key in ["loss", "z_loss", "grad_norm"] {
                assert!(a[key].is_f64() && a[key] == b[key], "{key} of step {}: {} and {}", a["step"], a[key], b[key]);
            }
        }
        assert!(runs.weights("a") == runs.weights("b"), "the weights differ");
    }

    #[test]
    fn a_checkpoint_continues_at_any_layout() {
        let runs = Runs::new();
        let want = runs.train("whole", CUBE, &[]);
        let first = read_tensors(&runs.case.dir.join("init/model.safetensors"));
        let last = runs.weights("whole");
        let others = [
            ("tp1-pp4", (4, [1, 4, 1])),
            ("tp4-dp2", (8, [4, 1, 1])),
            ("pp2-v2", (4, [1, 2, 2])),
            ("one", (1, [1; 3])),
        ];
        for (name, layout) in others {
            copy(&runs.dir("whole"), &runs.dir(name));
            let before = std::fs::read_to_string(runs.dir(name).join("metrics.jsonl")).unwrap().lines().count();
            let got = runs.train(name, layout, &["--from-step", "3"]);
            let after = std::fs::read_to_string(runs.dir(name).join("metrics.jsonl")).unwrap().lines().count();
            assert_eq!(after - before, 3, "{name}: the steps after the third, each once");
            for (got, want) in got.iter().zip(&want) {
                for (key, bound) in
                    [("loss", 1e-5), ("grad_norm", 1e-4), ("lr", 0.0), ("tokens", 0.0), ("consumed_samples", 0.0)]
                {
                    let [got, want] = [got, want].map(|line| line[key].as_f64().unwrap());
                    let off = (got - want).abs() / want;
                    assert!(off <= bound, "{name}: {key} is {got}, without a stop {want}, off by {off:.1e}");
                }
            }
            for (tensor, got) in &runs.weights(name) {
                let off = distance(got, &last[tensor]) / distance(&first[tensor], &last[tensor]);
                assert!(off <= 1e-3, "{name}: {tensor} is off by {off:.1e} of the distance trained");
            }
        }
    }
}
