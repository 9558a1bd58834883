//! Mixtral (Jiang et al. 2024): Mistral without a default window, whose layers have experts.

use super::{Architecture, Family, FeedForward, LLAMA_NAMES, Layer, OneForm, Packed, PackedLayout, TensorNames, Toml};
use crate::config::{Activation, AttentionKind, Experts, Mlp, RouterWeights};

pub const MIXTRAL: Family = Family {
    architecture: Architecture::Mixtral,
    class: "MixtralForCausalLM",
    has: &[
        "sliding_window",
        "embedding_scale",
        "num_local_experts",
        "num_experts_per_tok",
        "router_aux_loss_coef",
        "router_z_loss_coef",
    ],
    lacks: &[],
    needs: &[],
    names: &[],
    also: &[],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(131_072)),
        ("rms_norm_eps", Toml::Float(1e-5)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(8)),
        ("rope_theta", Toml::Float(1e6)),
        ("num_local_experts", Toml::Integer(8)),
        ("num_experts_per_tok", Toml::Integer(2)),
    ],
    fixed: || vec![OneForm::silu()],
    default_rope: None,
    tensors: TensorNames {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        expert_up: &["w1", "w3"],
        expert_down: "w2",
        packed: Some(Packed { experts: "mlp.experts", router: "mlp.gate", layout: PackedLayout::Stacked }),
        ..LLAMA_NAMES
    },
    layer: |m, _| Layer {
        attention: m.sliding_window.map_or(AttentionKind::Full, AttentionKind::Window),
        feed_forward: FeedForward::Experts(Experts {
            count: m.num_local_experts,
            per_token: m.num_experts_per_tok,
            weights: RouterWeights::OfChosen,
            router_bias: false,
            mlp: Mlp { activation: Activation::SwiGlu, intermediate_size: m.intermediate_size },
        }),
        ..Layer::llama(m)
    },
    learned_positions: false,
    embedding_factor: None,
};
