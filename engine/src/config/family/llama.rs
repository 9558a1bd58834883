//! Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024), with the biases that transformers has for it.

use super::{Architecture, Family, LLAMA_NAMES, Layer, OneForm, Toml};

pub const LLAMA: Family = Family {
    architecture: Architecture::Llama,
    class: "LlamaForCausalLM",
    has: &["attention_bias", "mlp_bias", "embedding_scale"],
    lacks: &[],
    needs: &[],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(2048)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
    ],
    fixed: || vec![OneForm::silu()],
    default_rope: None,
    tensors: LLAMA_NAMES,
    layer: |m, _| Layer::llama(m),
    learned_positions: false,
    embedding_factor: None,
};
