//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases of q, k and v, and a window in some layers where
//! `use_sliding_window` asks for it.

use super::{Architecture, Family, LLAMA_NAMES, Layer, OneForm, Toml};
use crate::config::layer::Biases;

pub const QWEN2: Family = Family {
    architecture: Architecture::Qwen2,
    class: "Qwen2ForCausalLM",
    has: &["sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "embedding_scale"],
    lacks: &[],
    needs: &[],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(32_768)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(32)),
        ("sliding_window", Toml::Integer(4096)),
    ],
    fixed: || vec![OneForm::silu()],
    default_rope: None,
    tensors: LLAMA_NAMES,
    layer: |m, l| Layer {
        attention: m.attention_by_type(l),
        biases: Biases { qkv: true, out: false, mlp: false },
        ..Layer::llama(m)
    },
    learned_positions: false,
    embedding_factor: None,
};
