//! The families of models train on the device as on the CPU, within the rounding of bf16, and use the memory that was
//! planned for them: whole steps with the ops that Llama has no use for.

use toml::Value as Toml;

use super::{Site, apart, experts, small, with};
use crate::common::{engine, finish, metrics, set, write_config};
use crate::trajectories::BF16;

/// Trains a small model with these settings on both.
#[track_caller]
fn trains_alike(name: &str, settings: &[(&str, Toml)]) {
    let site = Site::new();
    let mut config = with(&small(site.tmp.path()), settings);
    if name == "gpt2" {
        // Keys that the family does not have.
        let model = config["model"].as_table_mut().unwrap();
        for key in ["num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps"] {
            model.remove(key);
        }
    }
    let mut on_cpu = with(&config, &[("train.backend", "cpu".into())]);
    set(&mut on_cpu, "checkpoint.dir", site.dir("cpu").to_str().unwrap());
    let on_cpu = write_config(site.tmp.path(), "cpu.toml", &on_cpu);
    finish(engine().args(["train", "--config"]).arg(on_cpu)).succeeded();
    let (right, left) = (metrics(&site.dir("cpu")), site.run("cuda", 1, &config, apart));
    assert_eq!(left.metrics.len(), right.len());
    for (got, want) in left.metrics.iter().zip(&right) {
        for (key, bound) in [("loss", BF16.loss), ("grad_norm", BF16.grad_norm)] {
            let [is, cpu] = [got, want].map(|step| step[key].as_f64().unwrap());
            let off = (is / cpu - 1.0).abs();
            assert!(off <= bound, "{name}, step {}: {key} is {is}, on the CPU {cpu}: {off:.1e}", got["step"]);
        }
    }
}

/// Norms of the heads of q and k.
#[test]
fn qwen3() {
    trains_alike("qwen3", &[("model.architecture", "qwen3".into()), ("train.recompute", "selective".into())]);
}

/// A router, and experts whose rows are multiplied together.
#[test]
fn mixtral() {
    trains_alike("mixtral", &[&experts()[..], &[("train.recompute", "selective".into())]].concat());
}

/// Sinks, biases of the router and of the experts, clamped gates, a window in one of two layers, in rounds of some
/// rows.
#[test]
fn gpt_oss() {
    let settings = [
        ("model.architecture", "gpt_oss".into()),
        ("model.sliding_window", 9.into()),
        ("parallel.expert_buffer", 0.6.into()),
        ("train.recompute", "selective".into()),
    ];
    trains_alike("gpt_oss", &[&experts()[..], &settings].concat());
}

mod exhaustive {
    use super::*;

    /// Experts of a width that is no multiple of 8, in rounds of some rows.
    #[test]
    fn qwen3_moe() {
        let settings = [
            ("model.architecture", "qwen3_moe".into()),
            ("model.num_local_experts", 6.into()),
            ("model.num_experts_per_tok", 3.into()),
            ("model.moe_intermediate_size", 20.into()),
            ("parallel.expert_buffer", 0.4.into()),
        ];
        trains_alike("qwen3_moe", &settings);
    }

    /// Biases of q, k and v.
    #[test]
    fn qwen2() {
        trains_alike("qwen2", &[("model.architecture", "qwen2".into())]);
    }

    /// Biases of all products.
    #[test]
    fn llama_with_biases() {
        trains_alike("llama", &[("model.attention_bias", true.into()), ("model.mlp_bias", true.into())]);
    }

    /// LayerNorm, GELU without a gate, learned positions, biases everywhere.
    #[test]
    fn gpt2() {
        trains_alike("gpt2", &[("model.architecture", "gpt2".into()), ("model.layer_norm_epsilon", 1e-5.into())]);
    }

    /// Norms with an offset, GeGLU, a scaled embedding, a window in one of two layers, soft-caps of scores and logits.
    #[test]
    fn gemma2() {
        trains_alike(
            "gemma2",
            &[
                ("model.architecture", "gemma2".into()),
                ("model.sliding_window", 9.into()),
                ("model.attn_logit_softcapping", 2.0.into()),
                ("model.query_pre_attn_scalar", 48.into()),
                ("model.final_logit_softcapping", 3.0.into()),
                ("model.tie_word_embeddings", true.into()),
            ],
        );
    }
}
