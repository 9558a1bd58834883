//! Qwen 3 (Yang et al. 2025): Llama with RMSNorms of the heads of q and k, a head size of its own, and a window in some
//! layers where `use_sliding_window` asks for it.

use super::{Architecture, Family, LLAMA_NAMES, Layer, OneForm, Toml};

pub const QWEN3: Family = Family {
    architecture: Architecture::Qwen3,
    class: "Qwen3ForCausalLM",
    has: &[
        "attention_bias",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
        "embedding_scale",
    ],
    lacks: &[],
    needs: &[],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(32_768)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(32)),
        ("head_dim", Toml::Integer(128)),
        ("sliding_window", Toml::Integer(4096)),
    ],
    fixed: || vec![OneForm::silu()],
    default_rope: None,
    tensors: LLAMA_NAMES,
    layer: |m, l| Layer { attention: m.attention_by_type(l), head_norms: true, ..Layer::llama(m) },
    learned_positions: false,
    embedding_factor: None,
};
