//! Mistral (Jiang et al. 2023): Llama with a sliding window in every layer, which is 4096 where the file does not say,
//! and none where it says null.

use super::{Architecture, Family, LLAMA_NAMES, Layer, OneForm, Toml};
use crate::config::AttentionKind;

pub const MISTRAL: Family = Family {
    architecture: Architecture::Mistral,
    class: "MistralForCausalLM",
    has: &["sliding_window", "embedding_scale"],
    lacks: &[],
    needs: &[],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(131_072)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(8)),
        ("sliding_window", Toml::Integer(4096)),
    ],
    fixed: || {
        let types = "transformers loads a Mistral with this key as a Ministral, which is not supported; remove it";
        vec![OneForm::silu(), OneForm::new("layer_types", [], types)]
    },
    default_rope: None,
    tensors: LLAMA_NAMES,
    layer: |m, _| Layer {
        attention: m.sliding_window.map_or(AttentionKind::Full, AttentionKind::Window),
        ..Layer::llama(m)
    },
    learned_positions: false,
    embedding_factor: None,
};
