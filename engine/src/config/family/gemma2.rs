//! Gemma 2 (Gemma Team 2024): soft-caps of scores and logits, a window in every other layer, norms (1 + w) before and
//! after attention and MLP, GeGLU, and an embedding scaled by sqrt(hidden_size).

use super::{Architecture, Family, FeedForward, LLAMA_NAMES, Layer, OneForm, TensorNames, Toml};
use crate::config::layer::{Activation, Mlp, NormKind};

pub const GEMMA2: Family = Family {
    architecture: Architecture::Gemma2,
    class: "Gemma2ForCausalLM",
    has: &[
        "attention_bias",
        "sliding_window",
        "layer_types",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
    ],
    lacks: &[],
    needs: &["sliding_window"],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(8192)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(4)),
        ("head_dim", Toml::Integer(256)),
        ("sliding_window", Toml::Integer(4096)),
        ("query_pre_attn_scalar", Toml::Integer(256)),
        ("attn_logit_softcapping", Toml::Float(50.0)),
        ("final_logit_softcapping", Toml::Float(30.0)),
        ("tie_word_embeddings", Toml::Boolean(true)),
    ],
    fixed: || {
        let gelu = "this activation is not supported; \"gelu_pytorch_tanh\" is";
        let causal = "attention to later positions is not supported; only false is";
        vec![
            OneForm::new("hidden_activation", ["gelu_pytorch_tanh".into()], gelu),
            OneForm::new("use_bidirectional_attention", [false.into()], causal),
        ]
    },
    default_rope: None,
    tensors: TensorNames {
        norm2: "pre_feedforward_layernorm",
        post1: "post_attention_layernorm",
        post2: "post_feedforward_layernorm",
        ..LLAMA_NAMES
    },
    layer: |m, l| Layer {
        attention: m.attention_by_type(l),
        norm: NormKind::RmsPlusOne,
        post_norms: true,
        feed_forward: FeedForward::Dense(Mlp { activation: Activation::GeGlu, intermediate_size: m.intermediate_size }),
        ..Layer::llama(m)
    },
    learned_positions: false,
    embedding_factor: Some(|m| (m.hidden_size as f64).sqrt()),
};
