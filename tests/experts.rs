//! Models with experts: the golden runs of PyTorch at every way of sharing experts, and rounds that change nothing.

use crate::common::{Case, EXPERT_CASES, finish, metrics, mpirun, read_tensors, set, write_config};
use crate::gradients::agree_at;
use crate::trajectories::{F32, follows};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use toml::Table;

/// `case` on `ranks` ranks with these settings of `[parallel]` and `[train]`.
#[track_caller]
fn trains(case: &str, ranks: usize, settings: &[(&str, i64)]) {
    println!("{case} on {ranks} ranks: {settings:?}");
    follows(case, ranks, &F32, |config| apply(config, settings));
}

fn apply(config: &mut Table, settings: &[(&str, i64)]) {
    set(config, "train.micro_batch_size", 2);
    settings.iter().for_each(|(key, value)| set(config, key, *value));
}

const EP: &str = "parallel.expert";
const TP: &str = "parallel.tensor";
const PP: &str = "parallel.pipeline";

#[test]
fn one_rank() {
    EXPERT_CASES.iter().for_each(|case| trains(case, 1, &[]));
    EXPERT_CASES.iter().for_each(|case| agree_at(case, 1, &[("train.micro_batch_size", 8)]));
}

/// With a mask, so that micro-batches have different numbers of targets, and with tensor parallelism, where each rank
/// has a part of the router's gradient.
#[test]
fn shared_experts() {
    trains("qwen3_moe", 2, &[(EP, 2)]);
    agree_at("mixtral", 4, &[(EP, 2), (TP, 2)]);
    trains("mixtral", 4, &[(EP, 2), (PP, 2)]);
}

/// Buffers for a third of the rows of even routing: several rounds, on one rank and on two.
#[test]
fn rounds_change_nothing() {
    for (case, ranks) in [("mixtral", 1), ("qwen3_moe", 2)] {
        follows(case, ranks, &F32, |config| {
            apply(config, &[(EP, ranks as i64)]);
            set(config, "parallel.expert_buffer", 0.3);
        });
    }
}

/// A checkpoint knows nothing of who held which expert: one of four ranks that share the experts continues on two ranks
/// that share them, and on one.
#[test]
fn a_checkpoint_continues_with_the_experts_shared_otherwise() {
    let (tmp, case) = (tempfile::tempdir().unwrap(), Case::open("qwen3_moe"));
    let run = tmp.path().join("run");
    let train = |ranks: usize, expert: i64, micro: i64, args: &[&str]| {
        let mut config = case.config(&run);
        apply(&mut config, &[(EP, expert), ("train.micro_batch_size", micro), ("checkpoint.interval", 3)]);
        let config = write_config(tmp.path(), "config.toml", &config);
        finish(mpirun(ranks).args(["train", "--config"]).arg(config).args(args)).succeeded();
        for (got, want) in metrics(&run).iter().zip(case.steps()) {
            let [got, want] = [got, want].map(|line| line["grad_norm"].as_f64().unwrap());
            assert!((got - want).abs() < 2e-4 * want, "{ranks} ranks: gradient norm {got}, PyTorch's {want}");
        }
    };
    train(4, 4, 1, &[]);
    train(2, 2, 2, &["--from-step", "3"]);
    train(1, 1, 4, &["--from-step", "3"]);
}

/// A router of zeros: all logits of a token are equal, so that every token chooses the first experts, which one rank
/// holds.
#[test]
fn all_tokens_may_choose_the_same_experts() {
    let tmp = tempfile::tempdir().unwrap();
    let case = Case::open("qwen3_moe_norm");
    let init = tmp.path().join("init");
    std::fs::create_dir(&init).unwrap();
    std::fs::copy(case.dir.join("init/config.json"), init.join("config.json")).unwrap();
    without_router(&case.dir.join("init/model.safetensors"), &init.join("model.safetensors"));
    let train = |ranks: usize, expert: i64, buffer: f64| {
        let run = tmp.path().join(format!("run-{ranks}-{expert}-{buffer}"));
        let mut config = case.config(&run);
        apply(&mut config, &[(EP, expert), ("train.micro_batch_size", 1), ("train.steps", 3)]);
        set(&mut config, "model.hf", init.to_str().unwrap());
        set(&mut config, "train.load", format!("hf:{}", init.display()));
        set(&mut config, "parallel.expert_buffer", buffer);
        let config = write_config(tmp.path(), "config.toml", &config);
        finish(mpirun(ranks).args(["train", "--config"]).arg(config)).succeeded();
        metrics(&run)
    };
    let alone = train(1, 1, 1.5);
    // Two of eight experts have all choices.
    assert_eq!(alone[0]["expert_load"]["max_over_mean"], 4.0);
    for (ranks, expert, buffer) in [(2, 2, 1.5), (4, 4, 1.0), (4, 2, 0.1)] {
        for (got, want) in train(ranks, expert, buffer).iter().zip(&alone) {
            for key in ["loss", "grad_norm", "aux_loss"] {
                let [got, want] = [got, want].map(|line| line[key].as_f64().unwrap());
                assert!((got - want).abs() < 2e-5 * want, "{key} on {ranks} ranks, buffer {buffer}: {got}, {want}");
            }
        }
    }
}

/// Copies a file with the routers' weights set to zero.
fn without_router(from: &Path, to: &Path) {
    let bytes = std::fs::read(from).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let zero = name.ends_with("mlp.gate.weight");
            let data = if zero { vec![0; tensor.data().len()] } else { tensor.data().to_vec() };
            (name, tensor.shape().to_vec(), data)
        })
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, to).unwrap();
    assert_eq!(read_tensors(to).len(), data.len());
}

mod exhaustive {
    use super::*;

    const DATA: &str = "train.micro_batch_size";

    #[test]
    fn layouts() {
        for case in EXPERT_CASES {
            trains(case, 4, &[(EP, 4), (DATA, 1)]);
            trains(case, 4, &[(EP, 2), (TP, 2)]);
            trains(case, 8, &[(EP, 2), (TP, 2), (PP, 2)]);
            trains(case, 8, &[(EP, 2), (TP, 4), (DATA, 1)]);
            trains(case, 8, &[(EP, 2), (DATA, 1)]);
            trains(case, 4, &[(EP, 2), (PP, 2), ("parallel.virtual_pipeline", 2)]);
            agree_at(case, 4, &[(EP, 2), (TP, 2), (DATA, 2)]);
            agree_at(case, 8, &[(EP, 4), (PP, 2), (DATA, 1)]);
        }
    }

    #[test]
    fn recomputation_and_rounds() {
        for recompute in ["none", "selective", "full"] {
            follows("qwen3_moe", 4, &F32, |config| {
                apply(config, &[(EP, 2), (TP, 2)]);
                set(config, "train.recompute", recompute);
                set(config, "parallel.expert_buffer", 0.4);
            });
        }
    }

    #[test]
    fn an_optimizer_that_is_not_sharded_changes_nothing() {
        follows("mixtral", 4, &F32, |config| {
            apply(config, &[(EP, 2)]);
            set(config, "parallel.distributed_optimizer", false);
        });
        follows("mixtral", 4, &F32, |config| {
            apply(config, &[(EP, 2), (TP, 2)]);
            set(config, "parallel.sequence_parallel", false);
        });
    }
}
