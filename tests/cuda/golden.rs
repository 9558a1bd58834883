//! PyTorch's runs, for the head sizes that the kernels take: the backend's error in bf16 is at most twice PyTorch's own
//! error in bf16. Both errors are samples of the same rounding noise, hence twice.

use serde_json::Value;

use super::{Left, Site, apart_and, on_device, with};
use crate::common::{Case, distance, read_tensors};
use crate::trajectories::BF16;

/// The largest allowed ratio of the backend's error to PyTorch's.
const TIMES: f64 = 2.0;

mod exhaustive {
    use super::*;

    #[test]
    fn heads_of_64() {
        follows("head_dim_64", "80");
    }

    /// A real device has kernels of its own.
    #[test]
    fn heads_of_128_by_the_kernels_for_sm_90a() {
        if !on_device() {
            follows("head_dim_128", "90");
        }
    }
}

/// Each architecture and each size of heads has one run in the tests above; these are the other two pairs.
mod campaign {
    use super::*;

    #[test]
    fn heads_of_128() {
        follows("head_dim_128", "80");
    }

    #[test]
    fn heads_of_64_by_the_kernels_for_sm_90a() {
        if !on_device() {
            follows("head_dim_64", "90");
        }
    }
}

/// Trains the case on one rank. The fake device has this compute capability.
#[track_caller]
fn follows(name: &str, capability: &str) {
    let (site, case) = (Site::new(), Case::open(name));
    let more =
        [("train.backend", "cuda".into()), ("train.precision", "bf16".into()), ("train.micro_batch_size", 2.into())];
    let config = with(&case.config(&site.dir("run")), &more);
    // With few processors a block does the work of many.
    let few = [("FAKE_CUDA_CAPABILITY", capability), ("FAKE_CUDA_PROCESSORS", "2")];
    let left = site.run("run", 1, &config, apart_and(&few));
    assert_eq!(left.metrics.len(), case.steps().len());
    for key in ["loss", "grad_norm"] {
        let off = worst(&left.metrics, case.steps(), key);
        let torch =
            largest(case.in_bf16().iter().map(|run| worst(run["steps"].as_array().unwrap(), case.steps(), key)));
        println!("{name}, {capability}: {key} is off by {off:.2e} at the most, PyTorch's by {torch:.2e}");
        assert!(off <= TIMES * torch, "{name}, {capability}: {key} is off by {off:.2e}, PyTorch's by {torch:.2e}");
    }
    assert!(worst(&left.metrics, case.steps(), "lr") < 1e-6, "{name}: rates");
    weights_are_near(&left, &case);
}

/// The largest relative error of `key` over the steps.
fn worst(got: &[Value], truth: &[Value], key: &str) -> f64 {
    let of = |step: &Value| step[key].as_f64().unwrap_or_else(|| panic!("no {key} in {step}"));
    largest(got.iter().zip(truth).map(|(got, truth)| (of(got) / of(truth) - 1.0).abs()))
}

fn largest(of: impl Iterator<Item = f64>) -> f64 {
    of.fold(0.0, f64::max)
}

/// Compares all weights together, and each matrix. A norm has so few weights that one whose first gradient is nearly
/// zero decides: AdamW takes the sign of that gradient, which is noise, for a whole step; hence the wider bound for
/// norms.
#[track_caller]
fn weights_are_near(left: &Left, case: &Case) {
    let (init, last) =
        (read_tensors(&case.dir.join("init/model.safetensors")), read_tensors(&case.dir.join("final.safetensors")));
    assert_eq!(left.weights.keys().collect::<Vec<_>>(), last.keys().collect::<Vec<_>>());
    let (mut off, mut way) = (0.0, 0.0);
    for (name, last) in &last {
        let (still, trained) = (distance(&left.weights[name], last), distance(&init[name], last));
        (off, way) = (off + still * still, way + trained * trained);
        let torch = largest(case.in_bf16().iter().map(|run| run["weights"]["each"][name].as_f64().unwrap()));
        let bound = if name.contains("norm") { BF16.weights } else { TIMES * torch };
        assert!(still <= bound * trained, "{name} is off by {:.2e}, PyTorch's by {torch:.2e}", still / trained);
    }
    let torch = largest(case.in_bf16().iter().map(|run| run["weights"]["together"].as_f64().unwrap()));
    let off = (off / way).sqrt();
    println!("weights are off by {off:.2e} of the distance trained, PyTorch's by {torch:.2e}");
    assert!(off <= TIMES * torch, "weights are off by {off:.2e} of the distance trained, PyTorch's by {torch:.2e}");
}
