//! The golden runs: losses, gradient norms and learning rates of all steps, and the final weights, are PyTorch's, on
//! one, two and four ranks and at every kind of layout.

use serde_json::Value;
use toml::Table;

use crate::common::{CASES, Case, distance, export, finish, metrics, mpirun, read_tensors, set, write_config};

/// The largest deviation from PyTorch's run: relative, and for the weights as a fraction of the distance trained.
pub struct Bounds {
    pub loss: f64,
    pub grad_norm: f64,
    pub weights: f64,
    /// Whether the run rounds to bf16.
    pub rounds: bool,
}

pub const F32: Bounds = Bounds { loss: 2e-5, grad_norm: 2e-4, weights: 2e-2, rounds: false };
pub const BF16: Bounds = Bounds { loss: 1.5e-3, grad_norm: 1.5e-2, weights: 0.15, rounds: true };

/// The cases for layouts: one of five layers with two key/value heads, one of four layers with tied embeddings.
const LAYOUTS: [&str; 2] = ["parity", "parity_tied"];

#[test]
fn one_rank() {
    CASES.iter().for_each(|case| follows(case, 1, &F32, |c| set(c, "train.micro_batch_size", 2)));
}

#[test]
fn data_parallel() {
    both(2, &[], |c| set(c, "train.micro_batch_size", 4));
}

#[test]
fn tensor_parallel() {
    layout(2, &[("tensor", 2)]);
}

#[test]
fn pipeline_parallel() {
    layout(2, &[("pipeline", 2), ("virtual_pipeline", 2)]);
}

#[test]
fn tensor_and_pipeline_parallel() {
    layout(4, &[("tensor", 2), ("pipeline", 2)]);
}

/// The cases in which targets do not count: by a mask, and by packing too.
const MASKED: [&str; 3] = ["loss_mask", "packed", "window_packed"];

/// A case of each family but Llama, and of Llama's biases: four layers, two key/value heads or, in GPT-2, eight.
const FAMILIES: [&str; 6] = ["window_packed", "biased", "qwen2", "qwen3", "gemma2", "gpt2"];

#[test]
fn masks_at_tensor_and_pipeline_parallel() {
    for case in MASKED {
        follows(case, 4, &F32, |c| {
            set(c, "parallel.tensor", 2);
            set(c, "parallel.pipeline", 2);
        });
    }
}

/// A layout of each family whose parts are all new somewhere: norms of heads, biases, and tables of positions.
#[test]
fn families_at_tensor_and_pipeline_parallel() {
    for case in ["biased", "qwen3", "gemma2", "gpt2"] {
        at(case, 4, &F32, &[("tensor", 2), ("pipeline", 2)]);
    }
}

/// Every rank finds the stage of a sample by itself.
#[test]
fn two_stages() {
    follows("two_stages", 2, &F32, |c| set(c, "train.micro_batch_size", 2));
}

#[test]
fn bf16() {
    follows("gqa_masked", 2, &BF16, |c| set(c, "train.precision", "bf16"));
}

#[test]
fn recompute_changes_nothing() {
    follows("gqa_masked", 2, &F32, |c| set(c, "train.recompute", "selective"));
    follows("gqa_masked", 2, &F32, |c| set(c, "train.recompute", "full"));
}

mod exhaustive {
    use super::*;

    /// Each family at every kind of layout, with every kind of recomputation, and in bf16; four ranks share two
    /// key/value heads.
    #[test]
    fn families() {
        for case in FAMILIES {
            recomputed(case, &[("tensor", 2)], "selective");
            at(case, 4, &F32, &[("tensor", 4)]);
            recomputed(case, &[("pipeline", 2)], "full");
            at(case, 2, &F32, &[("pipeline", 2), ("virtual_pipeline", 2)]);
            at(case, 8, &F32, &[("tensor", 4), ("pipeline", 2)]);
            follows(case, 8, &F32, |c| {
                set(c, "parallel.tensor", 2);
                set(c, "parallel.pipeline", 2);
                set(c, "parallel.sequence_parallel", false);
            });
            follows(case, 4, &BF16, |c| {
                set(c, "train.precision", "bf16");
                set(c, "parallel.tensor", 2);
                set(c, "parallel.pipeline", 2);
            });
        }
    }

    #[track_caller]
    fn recomputed(case: &str, degrees: &[(&str, i64)], recompute: &str) {
        println!("{case} with {recompute} recomputation: {degrees:?}");
        follows(case, 2, &F32, |c| {
            set(c, "train.recompute", recompute);
            degrees.iter().for_each(|(key, degree)| set(c, &format!("parallel.{key}"), *degree));
        });
    }

    #[test]
    fn two_ranks() {
        let others = CASES.iter().filter(|case| !FAMILIES.contains(case));
        others.for_each(|case| follows(case, 2, &F32, |c| set(c, "train.micro_batch_size", 4)));
    }

    #[test]
    fn four_ranks() {
        both(4, &[], |c| set(c, "train.micro_batch_size", 1));
    }

    #[test]
    fn bf16() {
        let others = CASES.iter().filter(|case| !FAMILIES.contains(case));
        others.for_each(|case| follows(case, 2, &BF16, |c| set(c, "train.precision", "bf16")));
    }

    #[test]
    fn two_stages_at_tensor_and_pipeline_parallel() {
        follows("two_stages", 4, &F32, |c| {
            set(c, "parallel.tensor", 2);
            set(c, "parallel.pipeline", 2);
        });
    }

    #[test]
    fn bf16_at_layouts() {
        for case in LAYOUTS {
            follows(case, 4, &BF16, |c| {
                set(c, "train.precision", "bf16");
                set(c, "parallel.tensor", 2);
                set(c, "parallel.pipeline", 2);
            });
        }
    }

    #[test]
    fn gradients_may_be_accumulated_in_bf16() {
        follows("gqa_masked", 4, &BF16, |c| {
            set(c, "train.precision", "bf16");
            set(c, "train.micro_batch_size", 1);
            set(c, "parallel.gradient_precision", "bf16");
        });
    }

    #[test]
    fn an_optimizer_that_is_not_sharded_changes_nothing() {
        follows("tied_z_loss", 2, &F32, |c| set(c, "parallel.distributed_optimizer", false));
    }

    #[test]
    fn tensor_parallel() {
        layout(4, &[("tensor", 4)]); // more ranks than the two key/value heads, which are replicated
        layout(8, &[("tensor", 8)]);
        layout(4, &[("tensor", 2)]);
    }

    #[test]
    fn pipeline_parallel() {
        layout(2, &[("pipeline", 2)]);
        layout(4, &[("pipeline", 4)]);
        layout(4, &[("pipeline", 2)]);
    }

    #[test]
    fn tensor_pipeline_and_data_parallel() {
        layout(8, &[("tensor", 2), ("pipeline", 2)]);
        layout(8, &[("tensor", 4), ("pipeline", 2), ("virtual_pipeline", 2)]);
    }

    #[test]
    fn without_sequence_parallelism() {
        for (ranks, tensor, pipeline) in [(2, 2, 1), (4, 4, 1), (8, 2, 2)] {
            both(ranks, &[("tensor", tensor), ("pipeline", pipeline)], |c| set(c, "parallel.sequence_parallel", false));
        }
    }

    #[test]
    fn masks_at_other_layouts() {
        let layouts: [(usize, &[(&str, i64)]); 3] =
            [(2, &[("virtual_pipeline", 2), ("pipeline", 2)]), (4, &[("tensor", 4)]), (4, &[("pipeline", 2)])];
        for (case, (ranks, degrees)) in MASKED.iter().flat_map(|case| layouts.map(|layout| (case, layout))) {
            follows(case, ranks, &F32, |c| {
                degrees.iter().for_each(|(key, degree)| set(c, &format!("parallel.{key}"), *degree));
            });
        }
    }

    #[test]
    fn layouts_that_recompute() {
        for recompute in ["selective", "full"] {
            both(2, &[("tensor", 2)], |c| set(c, "train.recompute", recompute));
            both(2, &[("pipeline", 2), ("virtual_pipeline", 2)], |c| set(c, "train.recompute", recompute));
        }
    }

    #[test]
    fn layouts_with_an_optimizer_that_is_not_sharded() {
        both(4, &[("tensor", 2)], |c| set(c, "parallel.distributed_optimizer", false));
        both(8, &[("tensor", 2), ("pipeline", 2)], |c| set(c, "parallel.distributed_optimizer", false));
    }

    #[test]
    fn any_order_of_the_axes() {
        for order in ["pp-dp-ep-cp-tp", "dp-tp-cp-ep-pp"] {
            both(8, &[("tensor", 2), ("pipeline", 2)], |c| set(c, "parallel.order", order));
        }
    }
}

/// Runs [`LAYOUTS`] with these degrees.
#[track_caller]
fn layout(ranks: usize, degrees: &[(&str, i64)]) {
    both(ranks, degrees, |_| ());
}

/// `case` at the parallel degrees `degrees`.
#[track_caller]
fn at(case: &str, ranks: usize, bounds: &Bounds, degrees: &[(&str, i64)]) {
    println!("{case} on {ranks} ranks: {degrees:?}");
    follows(case, ranks, bounds, |c| {
        set(c, "train.micro_batch_size", 2);
        degrees.iter().for_each(|(key, degree)| set(c, &format!("parallel.{key}"), *degree));
    });
}

#[track_caller]
fn both(ranks: usize, degrees: &[(&str, i64)], change: impl Fn(&mut Table)) {
    for case in LAYOUTS {
        println!("{case} on {ranks} ranks: {degrees:?}");
        follows(case, ranks, &F32, |c| {
            degrees.iter().for_each(|(key, degree)| set(c, &format!("parallel.{key}"), *degree));
            change(c);
        });
    }
}

/// Trains a case on `ranks` ranks, with its configuration as `change` changes it, and compares everything with PyTorch.
#[track_caller]
pub fn follows(name: &str, ranks: usize, bounds: &Bounds, change: impl Fn(&mut Table)) {
    let (case, tmp) = (Case::open(name), tempfile::tempdir().unwrap());
    let run = tmp.path().join("run");
    let mut config = case.config(&run);
    change(&mut config);
    let config = write_config(tmp.path(), "config.toml", &config);
    finish(mpirun(ranks).args(["train", "--config"]).arg(config)).succeeded();

    let got = metrics(&run);
    assert_eq!(got.len(), case.steps().len(), "{name}");
    for (got, want) in got.iter().zip(case.steps()) {
        assert_eq!(got["step"], want["step"]);
        near(name, got, want, "loss", bounds.loss);
        near(name, got, want, "grad_norm", bounds.grad_norm);
        near(name, got, want, "lr", 1e-6);
        near(name, got, want, "valid_loss", bounds.loss);
        near(name, got, want, "z_loss", bounds.loss.max(1e-4));
        near(name, got, want, "aux_loss", bounds.loss);
        near(name, got, want, "router_z_loss", bounds.loss);
        near(name, got, want, "loss_tokens", f64::MIN_POSITIVE);
        for (set, want) in want["valid"].as_object().into_iter().flatten() {
            let got = &got["valid"][set];
            near(name, got, want, "loss", bounds.loss);
            assert_eq!((&got["loss_tokens"], &got["bits_per_byte"]), (&want["loss_tokens"], &Value::Null), "{name}");
        }
    }
    let weights = export(&run, &tmp.path().join("hf"));
    let (init, want) =
        (read_tensors(&case.dir.join("init/model.safetensors")), read_tensors(&case.dir.join("final.safetensors")));
    assert_eq!(weights.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{name}");
    for (tensor, want) in &want {
        let held = |&(i, _): &(usize, &f32)| !bounds.rounds || is_held_in_bf16(tensor, i, want.len());
        let [got, want, init] = [&weights[tensor], want, &init[tensor]]
            .map(|values| -> Vec<f32> { values.iter().enumerate().filter(held).map(|(_, value)| *value).collect() });
        if want.is_empty() {
            continue;
        }
        let off = distance(&got, &want) / distance(&init, &want);
        assert!(off < bounds.weights, "{name}: {tensor} is off by {off:.2e} of the distance trained");
    }
}

/// Whether element `i` of a tensor is compared in bf16: all but biases of keys, which shift all scores of a query
/// alike, up to the rotation. Their gradient is mostly rounding (all of it in GPT-2, whose c_attn holds q, k and v),
/// and AdamW makes steps of full size of it. In f32 they are compared like others.
fn is_held_in_bf16(tensor: &str, i: usize, len: usize) -> bool {
    let of_keys = match tensor {
        _ if tensor.ends_with("k_proj.bias") => 0..len,
        _ if tensor.ends_with("c_attn.bias") => len / 3..2 * len / 3,
        _ => 0..0,
    };
    !of_keys.contains(&i)
}

/// If PyTorch's step has `key`, the run's must have it too, and agree.
#[track_caller]
fn near(name: &str, got: &Value, want: &Value, key: &str, bound: f64) {
    let Some(expected) = want[key].as_f64() else { return };
    let value = got[key].as_f64().unwrap_or_else(|| panic!("{name}: no {key} in {got}"));
    // A step without counted targets has a loss and a gradient of 0.
    let off = (value - expected).abs() / expected.abs().max(1e-9);
    assert!(off < bound, "{name}, step {}: {key} is {value}, PyTorch's {expected}, off by {off:.2e}", want["step"]);
}
