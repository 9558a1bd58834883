//! Models with experts: the golden runs of PyTorch at every way of sharing experts, and rounds that change nothing.

use crate::common::{Case, EXPERT_CASES, engine, finish, metrics, mpirun, read_tensors, set, write_config};
use crate::gradients::agree_at;
use crate::trajectories::{F32, follows};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
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
    // Ranks that share heads have the sinks of their own heads, and add their own columns of the experts' biases.
    trains("gpt_oss", 4, &[(EP, 2), (TP, 2)]);
    agree_at("gpt_oss", 4, &[(EP, 2), (TP, 2)]);
}

/// Buffers for a third of the rows of even routing: several rounds, on one rank and on two.
#[test]
fn rounds_change_nothing() {
    for (case, ranks, recompute) in [("mixtral", 1, "selective"), ("qwen3_moe", 2, "none"), ("gpt_oss", 2, "none")] {
        follows(case, ranks, &F32, |config| {
            apply(config, &[(EP, ranks as i64)]);
            set(config, "parallel.expert_buffer", 0.3);
            set(config, "train.recompute", recompute);
        });
    }
}

/// One rank with a buffer of the rows of even routing has none beyond the first round, and with a third of it two in
/// each layer and micro-batch.
#[test]
fn rounds_are_counted() {
    let (tmp, case) = (tempfile::tempdir().unwrap(), Case::open("mixtral"));
    for (buffer, rounds) in [(1.0, 0), (0.34, 2 * 4 * 4)] {
        let run = tmp.path().join(format!("run-{buffer}"));
        let mut config = case.config(&run);
        apply(&mut config, &[("train.steps", 2)]);
        set(&mut config, "parallel.expert_buffer", buffer);
        let config = write_config(tmp.path(), "config.toml", &config);
        finish(mpirun(1).args(["train", "--config"]).arg(config)).succeeded();
        for step in metrics(&run) {
            assert_eq!(step["expert_rounds"], rounds, "buffer {buffer}: {step}");
        }
    }
}

/// A checkpoint does not depend on which rank holds which expert: one of four ranks that share the experts continues on
/// two ranks that share them, and on one.
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
    let train = |ranks: usize, expert: i64, buffer: f64| {
        let run = tmp.path().join(format!("run-{ranks}-{expert}-{buffer}"));
        let mut config = with_routers(0.0, tmp.path(), &run);
        apply(&mut config, &[(EP, expert), ("train.micro_batch_size", 1), ("train.steps", 3)]);
        set(&mut config, "parallel.expert_buffer", buffer);
        let config = write_config(tmp.path(), "config.toml", &config);
        finish(mpirun(ranks).args(["train", "--config"]).arg(config)).succeeded();
        // The dry run, which plans for even routing, counts every byte.
        let memory: Value = serde_json::from_str(&std::fs::read_to_string(run.join("memory.json")).unwrap()).unwrap();
        for rank in memory["ranks"].as_array().unwrap() {
            assert!(rank["used"]["peak_bytes"].as_u64() > Some(0));
            assert_eq!(rank["planned"], rank["used"], "{ranks} ranks, buffer {buffer}: {rank}");
        }
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

/// A run of 100 steps names the experts that no token chose, and its report has a picture of the load.
#[test]
fn experts_without_a_token_are_named_and_seen_in_the_report() {
    let tmp = tempfile::tempdir().unwrap();
    let run = tmp.path().join("run");
    let mut config = with_routers(0.0, tmp.path(), &run);
    for (key, value) in [("train.steps", 100), ("train.global_batch_size", 1), ("train.micro_batch_size", 1)] {
        set(&mut config, key, value);
    }
    // A step that is zero in f32, so that the router stays where it is: the first two of eight experts have all tokens.
    set(&mut config, "optimizer.lr", 1e-60);
    set(&mut config, "optimizer.min_lr", 0.0);
    let config = write_config(tmp.path(), "config.toml", &config);
    let outcome = finish(mpirun(1).args(["train", "--config"]).arg(config)).succeeded();
    let warning = "step 100: no token of the last 100 steps chose expert 2 of layer 1, 3 of layer 1, 4 of layer 1, \
                   5 of layer 1, 6 of layer 1 and 7 more; model.router_aux_loss_coef balances the experts";
    assert_eq!(outcome.stderr.matches(warning).count(), 1, "{}", outcome.stderr);
    finish(engine().arg("report").arg(&run)).succeeded();
    let page = std::fs::read_to_string(run.join("efficiency.html")).unwrap();
    for text in ["Load of the experts", "the most chosen expert had 4.00 times the mean of its layer", "<svg"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("12 of 16 experts had no"), "experts without a token");
}

/// Weights so large that logits are not finite. Choices exist all the same, so that no rank waits for rows for ever.
#[test]
fn a_router_that_is_not_finite_is_named() {
    for (ranks, expert) in [(1, 1), (2, 2)] {
        let tmp = tempfile::tempdir().unwrap();
        let mut config = with_routers(f32::MAX, tmp.path(), &tmp.path().join("run"));
        apply(&mut config, &[(EP, expert)]);
        let config = write_config(tmp.path(), "config.toml", &config);
        let outcome = finish(mpirun(ranks).args(["train", "--config"]).arg(config));
        // Layer 1 is the first one with experts.
        let place = "the first number that is not finite came from router_logits in layer 1, forward of micro-batch 0";
        outcome.refused(1, &["training has diverged", place]);
    }
}

/// The configuration of a case whose routers start with this value in all of their weights, written below `dir`.
fn with_routers(value: f32, dir: &Path, run: &Path) -> Table {
    let case = Case::open("qwen3_moe_norm");
    let init = dir.join("init");
    std::fs::create_dir_all(&init).unwrap();
    std::fs::copy(case.dir.join("init/config.json"), init.join("config.json")).unwrap();
    fill_routers(value, &case.dir.join("init/model.safetensors"), &init.join("model.safetensors"));
    let mut config = case.config(run);
    set(&mut config, "model.hf", init.to_str().unwrap());
    set(&mut config, "train.load", format!("hf:{}", init.display()));
    config
}

/// Copies a file with this value in all weights of the routers.
fn fill_routers(value: f32, from: &Path, to: &Path) {
    let bytes = std::fs::read(from).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let fill = |(name, tensor): (String, TensorView)| {
        let router = name.ends_with("mlp.gate.weight");
        let data = if router { value.to_le_bytes().repeat(tensor.data().len() / 4) } else { tensor.data().to_vec() };
        (name, tensor.shape().to_vec(), data)
    };
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = file.tensors().into_iter().map(fill).collect();
    let views = data
        .iter()
        .map(|(name, shape, data)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, to).unwrap();
    assert_eq!(read_tensors(to).len(), data.len());
}

mod exhaustive {
    use super::*;

    const DATA: &str = "train.micro_batch_size";
    const RECOMPUTE: [&str; 3] = ["none", "selective", "full"];

    #[test]
    fn layouts() {
        for case in EXPERT_CASES {
            trains(case, 4, &[(EP, 4), (DATA, 1)]);
            trains(case, 4, &[(EP, 2), (TP, 2)]);
            trains(case, 8, &[(EP, 2), (TP, 2), (PP, 2)]);
            trains(case, 8, &[(EP, 2), (TP, 4)]);
            trains(case, 8, &[(EP, 2), (DATA, 1)]);
            trains(case, 4, &[(EP, 2), (PP, 2), ("parallel.virtual_pipeline", 2)]);
            agree_at(case, 4, &[(EP, 2), (TP, 2), (DATA, 2)]);
            agree_at(case, 8, &[(EP, 4), (PP, 2), (DATA, 1)]);
        }
    }

    #[test]
    fn recomputation_and_rounds() {
        for (case, recompute) in ["qwen3_moe", "gpt_oss"].into_iter().flat_map(|case| RECOMPUTE.map(|how| (case, how)))
        {
            for layout in [[(EP, 2), (TP, 2)], [(TP, 2), (PP, 2)]] {
                follows(case, 4, &F32, |config| {
                    apply(config, &layout);
                    set(config, "train.recompute", recompute);
                    set(config, "parallel.expert_buffer", 0.4);
                });
            }
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
