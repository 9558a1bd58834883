//! GPT-OSS (OpenAI 2025): experts with biases and a clamped gate in every layer, a learned sink for each head of
//! attention, a window in every other layer, YaRN.

use super::{Architecture, Family, FeedForward, LLAMA_NAMES, Layer, OneForm, Packed, PackedLayout, TensorNames, Toml};
use crate::config::layer::{Activation, Biases, Mlp};
use crate::config::{Experts, RouterWeights};

pub const GPT_OSS: Family = Family {
    architecture: Architecture::GptOss,
    class: "GptOssForCausalLM",
    has: &[
        "attention_bias",
        "sliding_window",
        "layer_types",
        "embedding_scale",
        "num_local_experts",
        "num_experts_per_tok",
        "swiglu_limit",
        "router_aux_loss_coef",
        "router_z_loss_coef",
    ],
    lacks: &[],
    needs: &["sliding_window"],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(131_072)),
        ("rms_norm_eps", Toml::Float(1e-5)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(8)),
        ("head_dim", Toml::Integer(64)),
        ("rope_theta", Toml::Float(150_000.0)),
        ("sliding_window", Toml::Integer(128)),
        ("num_local_experts", Toml::Integer(128)),
        ("num_experts_per_tok", Toml::Integer(4)),
        ("attention_bias", Toml::Boolean(true)),
    ],
    fixed: || vec![OneForm::silu()],
    default_rope: Some(
        r#"{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096}"#,
    ),
    tensors: TensorNames {
        sinks: "self_attn.sinks",
        router: "mlp.router",
        experts: "mlp.experts",
        expert_up: &["gate_proj", "up_proj"],
        expert_down: "down_proj",
        packed: Some(Packed { experts: "mlp.experts", router: "mlp.router", layout: PackedLayout::Alternating }),
        quantization: Some("mxfp4"),
        ..LLAMA_NAMES
    },
    layer: |m, l| Layer {
        attention: m.attention_by_type(l),
        sinks: true,
        biases: Biases { mlp: true, ..Layer::llama(m).biases },
        feed_forward: FeedForward::Experts(Experts {
            count: m.num_local_experts,
            per_token: m.num_experts_per_tok,
            weights: RouterWeights::OfChosen,
            router_bias: true,
            mlp: Mlp { activation: Activation::ClampedSwiGlu, intermediate_size: m.intermediate_size },
        }),
        ..Layer::llama(m)
    },
    learned_positions: false,
    embedding_factor: None,
};
