//! The families of models, a file for each: its keys of `[model]`, its `config.json`, the names of its tensors, and its
//! list of layers. Another family is a file here and a line in [`Family::of`] and [`Architecture`], and, where it has
//! new maths, a layer and its ops.

mod gemma2;
mod gpt2;
mod gpt_oss;
mod llama;
mod mistral;
mod mixtral;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use super::layer::{FeedForward, Layer};
use super::{Architecture, Model, Named};
use serde_json::Value;
use toml::Value as Toml;

/// A family: how its models differ from each other in what the engine does, and how its `config.json` differs from a
/// `[model]` table.
#[derive(Clone, Copy)]
pub struct Family {
    pub architecture: Architecture,
    /// Its language model class in transformers.
    pub class: &'static str,
    /// The keys of [`OPTIONAL`] that its models have.
    pub has: &'static [&'static str],
    /// The other keys of `[model]` that its models do not have.
    pub lacks: &'static [&'static str],
    /// Keys of [`OPTIONAL`] that transformers cannot do without.
    pub needs: &'static [&'static str],
    /// (key of `[model]`, name in the file), for keys whose two names differ.
    pub names: &'static [(&'static str, &'static str)],
    /// (key of `[model]`, second name in the file) of keys that transformers 4 and 5 name differently.
    pub also: &'static [(&'static str, &'static str)],
    /// Defaults of its configuration class in transformers for fields that the file lacks.
    pub defaults: &'static [(&'static str, Toml)],
    /// Fields of the file that the engine has in one form only.
    pub fixed: fn() -> Vec<OneForm>,
    /// The rotary embedding of a file that has none, as JSON; a plain one where it is `None`.
    pub default_rope: Option<&'static str>,
    pub tensors: TensorNames,
    /// Layer l of a model.
    pub layer: fn(&Model, usize) -> Layer,
    /// Whether positions are learned (a table that is added to the embedding) instead of rotary.
    pub learned_positions: bool,
    /// The factor of the embedding's output where it is no key.
    pub embedding_factor: Option<fn(&Model) -> f64>,
}

/// Keys of `[model]` that only some families have.
pub const OPTIONAL: [&str; 20] = [
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "embedding_scale",
    "layer_norm_epsilon",
    "num_local_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "swiglu_limit",
    "norm_topk_prob",
    "decoder_sparse_step",
    "mlp_only_layers",
    "router_aux_loss_coef",
    "router_z_loss_coef",
];

/// The default of `max_window_layers`.
pub const MAX_WINDOW_LAYERS: usize = 28;

/// A field of `config.json` that the engine has in one form only.
pub struct OneForm {
    pub key: &'static str,
    /// The values that mean this form; an export writes the first.
    pub values: Vec<Value>,
    /// The remedy for another value.
    pub remedy: &'static str,
}

impl OneForm {
    pub fn new(key: &'static str, values: impl IntoIterator<Item = Value>, remedy: &'static str) -> OneForm {
        OneForm { key, values: values.into_iter().collect(), remedy }
    }

    /// The activation of SwiGLU.
    fn silu() -> OneForm {
        OneForm::new("hidden_act", ["silu".into(), "swish".into()], "this activation is not supported; \"silu\" is")
    }
}

/// The names of a family's tensors, without `.weight` and `.bias`; those of a layer follow `layers` and its number.
#[derive(Clone, Copy)]
pub struct TensorNames {
    /// With its `.weight`, as are the other tables.
    pub table: &'static str,
    pub positions: &'static str,
    pub head: &'static str,
    pub final_norm: &'static str,
    pub layers: &'static str,
    pub norm1: &'static str,
    pub norm2: &'static str,
    pub post1: &'static str,
    pub post2: &'static str,
    pub qkv: [&'static str; 3],
    /// The file's tensor that holds all three.
    pub qkv_together: Option<&'static str>,
    /// Whether the file has the layers' matrices `[in, out]`.
    pub transposed: bool,
    /// Endings of tensors that older files have beside the weights, and that are not read.
    pub buffers: &'static [&'static str],
    pub head_norms: [&'static str; 2],
    /// Without `.weight`, as the file has it.
    pub sinks: &'static str,
    pub out: &'static str,
    /// The gate and the values, or the values alone.
    pub up: &'static [&'static str],
    pub down: &'static str,
    pub router: &'static str,
    /// The module of the experts; those of one expert follow it and its number.
    pub experts: &'static str,
    pub expert_up: &'static [&'static str],
    pub expert_down: &'static str,
    /// The names where a file has the experts of a layer packed, if there are such files.
    pub packed: Option<Packed>,
    /// The `quant_method` of `config.json` with which a file may have packed experts, which are read and never written.
    pub quantization: Option<&'static str>,
}

/// The modules of packed experts: `gate_up_proj` and `down_proj` of all experts, without `.weight`, and their biases,
/// `gate_up_proj_bias` and `down_proj_bias`.
#[derive(Clone, Copy)]
pub struct Packed {
    pub experts: &'static str,
    pub router: &'static str,
    pub layout: PackedLayout,
}

/// How the matrices of all experts lie in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedLayout {
    /// `[E, 2F, D]`, all gates above all values, and `[E, D, F]`. Files with a tensor for each expert are as common.
    Stacked,
    /// `[E, D, 2F]`, the columns of gates and values by turns, and `[E, F, D]`. No file has them otherwise.
    Alternating,
}

impl TensorNames {
    /// The full name of a module of layer `l`.
    pub fn of_layer(&self, l: usize, module: &str) -> String {
        format!("{}.{l}.{module}", self.layers)
    }

    /// The full name of a module of expert `e` in layer `l`.
    pub fn of_expert(&self, l: usize, e: usize, module: &str) -> String {
        self.of_layer(l, &format!("{}.{e}.{module}", self.experts))
    }
}

/// The names that all families after GPT share.
const LLAMA_NAMES: TensorNames = TensorNames {
    table: "model.embed_tokens.weight",
    positions: "",
    head: "lm_head.weight",
    final_norm: "model.norm",
    layers: "model.layers",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    post1: "",
    post2: "",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qkv_together: None,
    transposed: false,
    buffers: &["rotary_emb.inv_freq"],
    head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    sinks: "",
    out: "self_attn.o_proj",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    router: "",
    experts: "",
    expert_up: &[],
    expert_down: "",
    packed: None,
    quantization: None,
};

impl Family {
    pub fn of(architecture: Architecture) -> &'static Family {
        match architecture {
            Architecture::Llama => &llama::LLAMA,
            Architecture::Mistral => &mistral::MISTRAL,
            Architecture::Qwen2 => &qwen2::QWEN2,
            Architecture::Qwen3 => &qwen3::QWEN3,
            Architecture::Gemma2 => &gemma2::GEMMA2,
            Architecture::Gpt2 => &gpt2::GPT2,
            Architecture::Mixtral => &mixtral::MIXTRAL,
            Architecture::Qwen3Moe => &qwen3_moe::QWEN3_MOE,
            Architecture::GptOss => &gpt_oss::GPT_OSS,
        }
    }

    /// Whether its models have this key of `[model]`.
    pub fn has(&self, key: &str) -> bool {
        if OPTIONAL.contains(&key) { self.has.contains(&key) } else { !self.lacks.contains(&key) }
    }
}

impl Architecture {
    pub fn has(self, key: &str) -> bool {
        Family::of(self).has(key)
    }

    /// The remedy for a key that this architecture does not have.
    pub(super) fn lacks(self, key: &str) -> String {
        let others: Vec<_> = Self::NAMES.iter().filter(|(_, other)| other.has(key)).map(|(name, _)| *name).collect();
        format!("a {} has no {key}; leave it out (it is a key of {})", self.name(), others.join(", "))
    }
}
