//! GPT-2 (Radford et al. 2019): LayerNorm, learned positions, GELU, biases everywhere, a tied head. LLM-jp's first
//! models are of this family. The file has q, k and v as one tensor, and its matrices transposed.

use super::{Architecture, Family, FeedForward, Layer, OneForm, TensorNames, Toml};
use crate::config::layer::{Activation, Biases, Mlp, NormKind};

pub const GPT2: Family = Family {
    architecture: Architecture::Gpt2,
    class: "GPT2LMHeadModel",
    has: &["layer_norm_epsilon"],
    lacks: &["num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rms_norm_eps"],
    needs: &[],
    names: &[
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
    ],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(1024)),
        ("layer_norm_epsilon", Toml::Float(1e-5)),
        ("initializer_range", Toml::Float(0.02)),
        ("tie_word_embeddings", Toml::Boolean(true)),
    ],
    fixed: || {
        let gelu = "this activation is not supported; \"gelu_new\" is";
        let scaled = "other scales of the scores are not supported";
        vec![
            OneForm::new("activation_function", ["gelu_new".into(), "gelu_pytorch_tanh".into()], gelu),
            OneForm::new("scale_attn_weights", [true.into()], scaled),
            OneForm::new("scale_attn_by_inverse_layer_idx", [false.into()], scaled),
            OneForm::new("add_cross_attention", [false.into()], "cross-attention is not supported"),
        ]
    },
    default_rope: None,
    tensors: TensorNames {
        table: "transformer.wte.weight",
        positions: "transformer.wpe.weight",
        head: "lm_head.weight",
        final_norm: "transformer.ln_f",
        layers: "transformer.h",
        norm1: "ln_1",
        norm2: "ln_2",
        post1: "",
        post2: "",
        qkv: ["attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v"],
        qkv_together: Some("attn.c_attn"),
        transposed: true,
        buffers: &[".attn.bias", ".attn.masked_bias"],
        head_norms: ["", ""],
        sinks: "",
        out: "attn.c_proj",
        up: &["mlp.c_fc"],
        down: "mlp.c_proj",
        router: "",
        experts: "",
        expert_up: &[],
        expert_down: "",
        packed: None,
        quantization: None,
    },
    layer: |m, _| Layer {
        biases: Biases { qkv: true, out: true, mlp: true },
        norm: NormKind::Layer,
        feed_forward: FeedForward::Dense(Mlp { activation: Activation::Gelu, intermediate_size: m.intermediate_size }),
        ..Layer::llama(m)
    },
    learned_positions: true,
    embedding_factor: None,
};
