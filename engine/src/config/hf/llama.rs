//! Llama 2 and 3 (Touvron et al. 2023, Grattafiori et al. 2024).

use super::{Architecture, Family, LENGTH, Toml};

pub const LLAMA: Family = Family {
    architecture: Architecture::Llama,
    class: "LlamaForCausalLM",
    names: &[],
    defaults: &[
        (LENGTH, Toml::Integer(2048)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
    ],
    lacks: &["sliding_window"],
};
