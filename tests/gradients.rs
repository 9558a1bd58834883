//! Every parameter's gradient at step 1 is PyTorch's, on one, two and four ranks and at layouts.
//!
//! The gradient is computed from the exported weights: AdamW's first update is `lr * g / (|g| + eps)`, which for an eps
//! that dwarfs every gradient is `lr / eps * g`; with a large `lr / eps` the old weight is below its rounding error.

use crate::common::{CASES, Case, Tensors, distance, export, finish, mpirun, read_tensors, set, write_config};

const EPS: f64 = 1e8;
const SCALE: f64 = 1e6;

#[test]
fn one_rank() {
    CASES.iter().for_each(|case| agree(case, 1, 8));
}

mod exhaustive {
    use super::*;

    /// Data-parallel ranks sum their gradients alike, whatever the model.
    #[test]
    fn data_parallel() {
        for case in ["gqa_masked", "tied_z_loss", "loss_mask", "packed"] {
            agree(case, 2, 1);
            agree(case, 4, 2);
        }
    }

    #[test]
    fn layouts() {
        for case in ["parity", "parity_tied"] {
            agree_at(case, 4, &[("parallel.tensor", 4)]);
            agree_at(case, 8, &[("parallel.tensor", 2), ("parallel.pipeline", 2), ("train.micro_batch_size", 2)]);
            agree_at(case, 2, &[("parallel.pipeline", 2), ("parallel.virtual_pipeline", 2)]);
        }
        for case in ["biased", "qwen2", "qwen3", "gemma2", "gpt2"] {
            agree_at(case, 4, &[("parallel.tensor", 4), ("train.micro_batch_size", 2)]);
            agree_at(case, 4, &[("parallel.tensor", 2), ("parallel.pipeline", 2), ("train.micro_batch_size", 2)]);
        }
        agree_at("tied_z_loss", 4, &[("parallel.tensor", 2), ("parallel.pipeline", 2), ("train.micro_batch_size", 2)]);
        agree_at("gqa_masked", 8, &[("parallel.tensor", 8)]);
    }
}

#[track_caller]
fn agree(name: &str, ranks: usize, micro_batch_size: i64) {
    agree_at(name, ranks, &[("train.micro_batch_size", micro_batch_size)]);
}

#[track_caller]
pub fn agree_at(name: &str, ranks: usize, settings: &[(&str, i64)]) {
    let case = Case::open(name);
    let (got, want) = (gradients(&case, ranks, settings), read_tensors(&case.dir.join("grads.safetensors")));
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{name}");
    for (tensor, want) in &want {
        // The gradient of an expert that no token chose is zero.
        let norm = distance(want, &vec![0.0; want.len()]).max(f64::MIN_POSITIVE);
        let off = distance(&got[tensor], want) / norm;
        assert!(off < 1e-5, "{name} on {ranks} ranks, {settings:?}: the gradient of {tensor} is off by {off:.2e}");
    }
}

/// The change of the weights, over `SCALE`, by one step that is plain gradient descent at the rate `SCALE`.
#[track_caller]
fn gradients(case: &Case, ranks: usize, settings: &[(&str, i64)]) -> Tensors {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = case.config(&run);
    config.remove("optimizer");
    set(&mut config, "optimizer.schedule", "constant");
    set(&mut config, "optimizer.lr", SCALE * EPS);
    set(&mut config, "optimizer.eps", EPS);
    set(&mut config, "optimizer.weight_decay", 0.0);
    set(&mut config, "optimizer.clip_grad", 0.0);
    set(&mut config, "train.steps", 1);
    set(&mut config, "train.eval_interval", 0);
    settings.iter().for_each(|(key, value)| set(&mut config, key, *value));
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(mpirun(ranks).args(["train", "--config"]).arg(config)).succeeded();

    let before = read_tensors(&case.dir.join("init/model.safetensors"));
    let mut weights = export(&run, &tmp.path().join("hf"));
    for (tensor, after) in &mut weights {
        let moved = |(after, before): (&mut f32, &f32)| *after = ((*before as f64 - *after as f64) / SCALE) as f32;
        after.iter_mut().zip(&before[tensor]).for_each(moved);
    }
    weights
}
