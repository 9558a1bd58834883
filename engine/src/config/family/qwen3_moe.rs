//! Qwen 3 MoE (Yang et al. 2025): Qwen 3 whose layers have experts, all or some of them, and a window in every layer
//! where `use_sliding_window` asks for it.

use super::{Architecture, Family, FeedForward, LLAMA_NAMES, Layer, OneForm, Packed, PackedLayout, TensorNames, Toml};
use crate::config::{Activation, AttentionKind, Experts, Mlp, Model, RouterWeights};

pub const QWEN3_MOE: Family = Family {
    architecture: Architecture::Qwen3Moe,
    class: "Qwen3MoeForCausalLM",
    has: &[
        "attention_bias",
        "sliding_window",
        "use_sliding_window",
        "embedding_scale",
        "num_local_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
        "router_aux_loss_coef",
        "router_z_loss_coef",
    ],
    lacks: &[],
    needs: &[],
    names: &[],
    also: &[("num_local_experts", "num_experts")],
    defaults: &[
        ("max_position_embeddings", Toml::Integer(32_768)),
        ("rms_norm_eps", Toml::Float(1e-6)),
        ("initializer_range", Toml::Float(0.02)),
        ("num_key_value_heads", Toml::Integer(4)),
        ("sliding_window", Toml::Integer(4096)),
        ("num_local_experts", Toml::Integer(128)),
        ("num_experts_per_tok", Toml::Integer(8)),
        ("moe_intermediate_size", Toml::Integer(768)),
    ],
    fixed: || vec![OneForm::silu()],
    default_rope: None,
    tensors: TensorNames {
        router: "mlp.gate",
        experts: "mlp.experts",
        expert_up: &["gate_proj", "up_proj"],
        expert_down: "down_proj",
        packed: Some(Packed { experts: "mlp.experts", router: "mlp.gate", layout: PackedLayout::Stacked }),
        ..LLAMA_NAMES
    },
    layer,
    learned_positions: false,
    embedding_factor: None,
};

fn layer(m: &Model, l: usize) -> Layer {
    let window = m.sliding_window.filter(|_| m.use_sliding_window);
    let sparse = !m.mlp_only_layers.contains(&l) && (l + 1).is_multiple_of(m.decoder_sparse_step);
    let dense = Layer {
        attention: window.map_or(AttentionKind::Full, AttentionKind::Window),
        head_norms: true,
        ..Layer::llama(m)
    };
    if !sparse {
        return dense;
    }
    let weights = if m.norm_topk_prob { RouterWeights::OfChosen } else { RouterWeights::OfAll };
    let feed_forward = FeedForward::Experts(Experts {
        count: m.num_local_experts,
        per_token: m.num_experts_per_tok,
        weights,
        router_bias: false,
        mlp: Mlp { activation: Activation::SwiGlu, intermediate_size: m.moe_intermediate_size },
    });
    Layer { feed_forward, ..dense }
}
