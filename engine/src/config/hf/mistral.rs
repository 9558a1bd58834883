//! Mistral (Jiang et al. 2023): Llama with a sliding window in every layer, which is 4096 where the file does not say,
//! and none where it says null.

use super::{Architecture, Family, LENGTH, Toml};

pub const MISTRAL: Family = Family {
    architecture: Architecture::Mistral,
    class: "MistralForCausalLM",
    names: &[],
    defaults: &[
        (LENGTH, Toml::Integer(131_072)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(8)),
        ("sliding_window", Toml::Integer(4096)),
    ],
    lacks: &[],
};
