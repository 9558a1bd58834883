//! The model's shape, and the one place that lists its fields. The `[model]` table, `config.json` (see [`super::hf`]),
//! the identity of a checkpoint and the check of loaded weights all follow from the declaration of [`Model`]: a new
//! field is one line there. It needs a default, which is used for older checkpoints without the field.

use super::document::Document;
use super::family::{self, Family};
use super::layer::{LayerType, SWIGLU_LIMIT};
use super::names::{Named, named};
use super::origins::Origins;
use super::section::{Entry, Read, Rule, Section, Write, fixed_in_run, need, optional, or, section, table_text};
use crate::error::Result;
use std::path::PathBuf;
use toml::{Table, Value};

/// Widths and counts of heads; any product of two, times the layers, still fits 64 bits.
const WIDEST: u64 = 1 << 20;
const DEEPEST: u64 = 1 << 14;
/// A layer with more experts, or more of them for each token, is a typing error.
pub const MOST_EXPERTS: u64 = 1 << 12;
pub const MOST_CHOICES: u64 = 64;
/// Token ids and positions are 32-bit in the data files.
const LONGEST: u64 = i32::MAX as u64;
/// The remedy for layers that slide without a window.
const NO_WINDOW: &str = "has sliding_attention without a window; write sliding_window (and use_sliding_window = true \
    where there is that key)";
const ONE_LIMIT: &str = "must be 7.0: other clamps are not supported";
/// The remedies for a missing number of experts and for a missing size.
const EXPERTS: &str = "how many, or hf = \"DIR\" to take it from a config.json";
const SIZE: &str = "its value, or hf = \"DIR\" to take it from a config.json";

section! {
    /// The shape of a model, in Hugging Face's names.
    pub struct Model {
        /// The directory of the Hugging Face checkpoint whose `config.json` gave the shape, if any.
        pub hf: Option<PathBuf> = optional(),
        pub architecture: Architecture [InWeights] = need("architecture = \"llama\""),
        pub hidden_size: usize [InWeights] = need(SIZE).within(1..=WIDEST),
        pub intermediate_size: usize [InWeights] = width_of_mlp(architecture, hidden_size).within(1..=WIDEST),
        pub num_hidden_layers: usize [InWeights] = need(SIZE).within(1..=DEEPEST),
        // The engine does not need this if head_dim is given, but transformers cannot load such a Llama, and GPT-2 has
        // no head_dim.
        pub num_attention_heads: usize [InWeights] = need(SIZE).within(1..=WIDEST)
            .must(format!("must divide hidden_size ({hidden_size})"), |&heads| {
                let free = architecture != Architecture::Llama && architecture.has("head_dim");
                free || hidden_size.is_multiple_of(heads)
            }),
        pub num_key_value_heads: usize [InWeights] =
            only(architecture, "num_key_value_heads", num_attention_heads).within(1..=WIDEST)
            .must(format!("must divide num_attention_heads ({num_attention_heads})"), |&heads| {
                num_attention_heads.is_multiple_of(heads)
            }),
        pub head_dim: usize [InWeights] = head_dim(architecture, hidden_size, num_attention_heads).within(1..=WIDEST)
            .must("must be even: the rotary embedding rotates pairs", |dim| {
                dim.is_multiple_of(2) || !architecture.has("rope_theta")
            })
            .must(format!("num_attention_heads ({num_attention_heads}) x head_dim must be at most {WIDEST}"), |&dim| {
                (num_attention_heads * dim) as u64 <= WIDEST
            }),
        pub vocab_size: usize [InWeights] = need(SIZE).within(1..=LONGEST),
        pub max_position_embeddings: usize [InRun] = need(SIZE).within(1..=LONGEST),
        /// The base of the rotary embedding; none where positions are learned.
        pub rope_theta: Option<f64> [InModel] =
            needed(architecture, "rope_theta", "rope_theta = 10000.0 (Llama 2) or what the model was trained with")
                .real("must lie between 1 and 1e30", |x| (1.0..=1e30).contains(&x)),
        pub rope_scaling: RopeScaling [InModel] = only(architecture, "rope_scaling", RopeScaling::Default),
        /// Whether q, k, v and attention's output have biases; Qwen 2's q, k and v always have.
        pub attention_bias: bool [InWeights] =
            only(architecture, "attention_bias", architecture == Architecture::GptOss),
        /// Whether the MLP's products have biases.
        pub mlp_bias: bool [InWeights] = only(architecture, "mlp_bias", false),
        /// Whether Qwen's layers of `layer_types` have a window.
        pub use_sliding_window: bool [InModel] = only(architecture, "use_sliding_window", false),
        /// W: a query attends to itself and to the W - 1 positions before it.
        pub sliding_window: Option<usize> [InModel] = window(architecture).within(1..=LONGEST),
        /// The first layers, which have no window where `layer_types` does not say.
        pub max_window_layers: usize [InModel] = only(architecture, "max_window_layers", family::MAX_WINDOW_LAYERS),
        /// The attention of each layer.
        pub layer_types: LayerTypes [InModel] = only(
            architecture,
            "layer_types",
            LayerTypes::of(architecture, num_hidden_layers, use_sliding_window, sliding_window, max_window_layers),
        )
        .must(format!("must list num_hidden_layers = {num_hidden_layers} layers"), |types| {
            !architecture.has("layer_types") || types.0.len() == num_hidden_layers
        })
        .must(NO_WINDOW, |types| {
            let used = use_sliding_window || !architecture.has("use_sliding_window");
            (used && sliding_window.is_some()) || !types.0.contains(&LayerType::Sliding)
        }),
        pub rms_norm_eps: Option<f64> [InModel] =
            needed(architecture, "rms_norm_eps", "rms_norm_eps = 1e-5 or what the model was trained with").epsilon(),
        /// The epsilon of LayerNorm.
        pub layer_norm_epsilon: Option<f64> [InModel] =
            needed(architecture, "layer_norm_epsilon", "layer_norm_epsilon = 1e-5 or what the model was trained with")
                .epsilon(),
        /// Soft-cap of attention's scores s: they become cap tanh(s / cap).
        pub attn_logit_softcapping: Option<f64> [InModel] =
            only(architecture, "attn_logit_softcapping", None).soft_cap(),
        /// Soft-cap of the logits.
        pub final_logit_softcapping: Option<f64> [InModel] =
            only(architecture, "final_logit_softcapping", None).soft_cap(),
        /// Scores are scaled by its -1/2th power, and by that of head_dim in families without it.
        pub query_pre_attn_scalar: Option<usize> [InModel] = only(
            architecture,
            "query_pre_attn_scalar",
            Some(head_dim).filter(|_| architecture.has("query_pre_attn_scalar")),
        )
        .within(1..=WIDEST),
        /// The factor of the embedding's output.
        pub embedding_scale: f64 [InModel] = only(architecture, "embedding_scale", 1.0)
            .real("must lie between 1e-9 and 1e9", |x| (1e-9..=1e9).contains(&x)),
        /// E: the number of experts of a layer that has experts; 0 where no layer has.
        pub num_local_experts: usize [InWeights] = expert_key(architecture, "num_local_experts", EXPERTS, 0)
            .within(least(architecture, "num_local_experts")..=MOST_EXPERTS)
            .alias("num_experts"),
        /// k: the experts of a token.
        pub num_experts_per_tok: usize [InModel] = expert_key(architecture, "num_experts_per_tok", EXPERTS, 0)
            .within(least(architecture, "num_experts_per_tok")..=MOST_CHOICES)
            .must(format!("must be at most num_local_experts ({num_local_experts})"), |&k| k <= num_local_experts),
        /// The width of an expert where layers without experts have another.
        pub moe_intermediate_size: usize [InWeights] = expert_key(architecture, "moe_intermediate_size", SIZE, 0)
            .within(least(architecture, "moe_intermediate_size")..=WIDEST),
        /// The clamp of GPT-OSS's gates and values.
        pub swiglu_limit: f64 =
            only(architecture, "swiglu_limit", SWIGLU_LIMIT).real(ONE_LIMIT, |limit| limit == SWIGLU_LIMIT),
        /// Whether the weights of a token's experts are divided by their sum.
        pub norm_topk_prob: bool [InModel] = only(architecture, "norm_topk_prob", false),
        /// Every layer whose number, counted from 1, is a multiple of it has experts.
        pub decoder_sparse_step: usize [InWeights] =
            only(architecture, "decoder_sparse_step", 1).within(1..=DEEPEST),
        /// Layers, counted from 0, that have no experts.
        pub mlp_only_layers: Vec<usize> [InWeights] = only(architecture, "mlp_only_layers", Vec::new())
            .must(format!("must be numbers of layers below num_hidden_layers ({num_hidden_layers})"), |layers| {
                layers.iter().all(|&layer| layer < num_hidden_layers)
            }),
        /// The coefficient of the loss that balances the load of experts.
        pub router_aux_loss_coef: f64 = only(architecture, "router_aux_loss_coef", 0.0).not_negative(),
        /// The coefficient of the mean of the square of the router's log-sum-exp.
        pub router_z_loss_coef: f64 = only(architecture, "router_z_loss_coef", 0.0).not_negative(),
        pub tie_word_embeddings: bool [InWeights] = or(false),
        pub initializer_range: f64 = or(0.02).real("must lie between 0 and 1", |x| (0.0..=1.0).contains(&x)),
    }
    aliases {
        num_experts,
    }
}

/// A key that only some architectures have; the others have `default`.
fn only<'r, T: Read + Write + Clone + PartialEq + 'r>(
    architecture: Architecture,
    key: &'static str,
    default: T,
) -> Rule<'r, T> {
    let fixed = default.clone();
    or(default).must(architecture.lacks(key), move |value| architecture.has(key) || *value == fixed)
}

/// The width of the MLP; GPT-2's is four times that of the model where nothing is said.
fn width_of_mlp<'r>(architecture: Architecture, hidden_size: usize) -> Rule<'r, usize> {
    match architecture {
        Architecture::Gpt2 => or(4 * hidden_size),
        _ => need(SIZE),
    }
}

/// A key that the architectures which have it need.
fn needed<'r>(architecture: Architecture, key: &'static str, example: &'r str) -> Rule<'r, Option<f64>> {
    match architecture.has(key) {
        true => need(example),
        false => only(architecture, key, None),
    }
}

/// Some families cannot do without a window, even where no layer has it.
fn window<'r>(architecture: Architecture) -> Rule<'r, Option<usize>> {
    match Family::of(architecture).needs.contains(&"sliding_window") {
        true => need("sliding_window = 4096 or what the model was trained with; layer_types says which layers have it"),
        false => only(architecture, "sliding_window", None),
    }
}

/// By default all heads together are as wide as the model.
fn head_dim<'r>(architecture: Architecture, hidden_size: usize, heads: usize) -> Rule<'r, usize> {
    match hidden_size.is_multiple_of(heads) {
        true => only(architecture, "head_dim", hidden_size / heads),
        false => need("its value: num_attention_heads does not divide hidden_size"),
    }
}

/// `layer_types`: a list of the length of the model, or empty where all layers are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerTypes(pub Vec<LayerType>);

impl LayerTypes {
    /// transformers' default of a family's list.
    fn of(architecture: Architecture, layers: usize, used: bool, window: Option<usize>, full: usize) -> LayerTypes {
        let slides = |l: usize| used && window.is_some() && l >= full;
        let kind = |l| if slides(l) { LayerType::Sliding } else { LayerType::Full };
        match architecture {
            Architecture::Qwen2 | Architecture::Qwen3 => LayerTypes((0..layers).map(kind).collect()),
            // Even layers slide.
            Architecture::Gemma2 | Architecture::GptOss => {
                LayerTypes((0..layers).map(|l| if l % 2 == 0 { LayerType::Sliding } else { LayerType::Full }).collect())
            }
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Gpt2
            | Architecture::Mixtral
            | Architecture::Qwen3Moe => LayerTypes(Vec::new()),
        }
    }
}

impl Read for LayerTypes {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        Vec::read(value, key, at).map(LayerTypes)
    }
}

impl Write for LayerTypes {
    fn write(&self) -> Option<Value> {
        Some(self.0.write()?).filter(|_| !self.0.is_empty())
    }
}

/// A size that some architectures need; for the others it is `none`.
fn expert_key<'r>(architecture: Architecture, key: &'static str, example: &'r str, none: usize) -> Rule<'r, usize> {
    match architecture.has(key) {
        true => need(example),
        false => only(architecture, key, none),
    }
}

/// The least value of such a size.
fn least(architecture: Architecture, key: &str) -> u64 {
    u64::from(architecture.has(key))
}

named! {
    pub enum Architecture {
        Llama = "llama",
        Mistral = "mistral",
        Qwen2 = "qwen2",
        Qwen3 = "qwen3",
        Gemma2 = "gemma2",
        Gpt2 = "gpt2",
        Mixtral = "mixtral",
        Qwen3Moe = "qwen3_moe",
        GptOss = "gpt_oss",
    }
}

/// The scaling of the rotary frequencies for contexts longer than those of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    Default,
    Linear(Linear),
    Llama3(Llama3),
    Yarn(Yarn),
}

named! {
    /// The kinds of [`RopeScaling`].
    pub enum RopeType {
        Default = "default",
        Linear = "linear",
        Llama3 = "llama3",
        Yarn = "yarn",
    }
    not_built ["dynamic", "longrope"]
}

section! {
    /// All frequencies are divided by a factor (Chen et al. 2023).
    pub struct Linear {
        pub factor: f64 = need("its value: how many times as long as before the context is").factor(),
    }
}

section! {
    /// Llama 3's rotary scaling (Grattafiori et al. 2024).
    pub struct Llama3 {
        pub factor: f64 = need(FACTOR).factor(),
        pub low_freq_factor: f64 = need(FACTOR).real("must lie between 1e-9 and 1e9", |x| (1e-9..=1e9).contains(&x)),
        pub high_freq_factor: f64 = need(FACTOR)
            .real("must lie between 1e-9 and 1e9", |x| (1e-9..=1e9).contains(&x))
            .real(&format!("must be above low_freq_factor ({low_freq_factor})"), |x| x > low_freq_factor),
        pub original_max_position_embeddings: usize = need(FACTOR).within(1..=LONGEST),
    }
}

section! {
    /// YaRN (Peng et al. 2023): slow frequencies are divided by a factor, fast ones are kept, those between are mixed,
    /// and all scores of attention are scaled.
    pub struct Yarn {
        pub factor: f64 = need(LONGER).factor(),
        pub original_max_position_embeddings: usize = need("the original context's length").within(1..=LONGEST),
        /// A frequency is kept if it makes at least `beta_fast` turns over the original context, and divided by
        /// `factor` if it makes at most `beta_slow`.
        pub beta_fast: f64 = or(32.0).real("must lie between 1e-9 and 1e9", |x| (1e-9..=1e9).contains(&x)),
        pub beta_slow: f64 = or(1.0)
            .real("must lie between 1e-9 and 1e9", |x| (1e-9..=1e9).contains(&x))
            .real(&format!("must be below beta_fast ({beta_fast})"), |x| x < beta_fast),
        /// The factor of cos and sin; by default it follows from `factor` and the next two.
        pub attention_factor: Option<f64> = optional().positive(),
        pub mscale: Option<f64> = optional().not_negative(),
        pub mscale_all_dim: Option<f64> = optional().not_negative(),
        /// Whether the ends of the mixed range are rounded to whole pairs.
        pub truncate: bool = or(true),
    }
}

impl Yarn {
    /// The factor of cos and sin, and so of the square root of the scores.
    pub fn attention(&self) -> f64 {
        let g = |mscale: f64| if self.factor <= 1.0 { 1.0 } else { 0.1 * mscale * self.factor.ln() + 1.0 };
        match (self.attention_factor, self.mscale, self.mscale_all_dim) {
            (Some(factor), _, _) => factor,
            (None, Some(one), Some(all)) if one != 0.0 && all != 0.0 => g(one) / g(all),
            _ => g(1.0),
        }
    }
}

const LONGER: &str = "its value: how many times as long as before the context is";
const FACTOR: &str = "its value: llama3 scaling has no defaults";
const ROPE_TYPE: &str = "rope_type";

impl RopeType {
    /// The keys of `rope_scaling` beside `rope_type`.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            RopeType::Default => &[],
            RopeType::Linear => Linear::KEYS,
            RopeType::Llama3 => Llama3::KEYS,
            RopeType::Yarn => Yarn::KEYS,
        }
    }
}

impl RopeScaling {
    /// Keys and values in the order in which Hugging Face writes them.
    pub(super) fn keys_and_values(&self) -> Vec<(&'static str, Option<Value>)> {
        let (kind, entries) = match self {
            RopeScaling::Default => (RopeType::Default, vec![]),
            RopeScaling::Linear(scaling) => (RopeType::Linear, scaling.entries()),
            RopeScaling::Llama3(scaling) => (RopeType::Llama3, scaling.entries()),
            RopeScaling::Yarn(scaling) => (RopeType::Yarn, scaling.entries()),
        };
        let values = entries.into_iter().map(|entry| (entry.key, entry.value.write()));
        std::iter::once((ROPE_TYPE, kind.write())).chain(values).collect()
    }
}

impl Read for RopeScaling {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let keys = RopeType::NAMES.iter().flat_map(|(_, kind)| kind.keys()).chain([&ROPE_TYPE]);
        let section = Section::open(value, key, &keys.copied().collect::<Vec<_>>(), at)?;
        let kind = section.field(ROPE_TYPE);
        let scaling: RopeType = need("rope_type = \"default\", \"linear\", \"llama3\" or \"yarn\"").apply(&kind)?;
        let takes = |key: &str| key == ROPE_TYPE || scaling.keys().contains(&key);
        if let Some(other) = section.table.keys().find(|key| !takes(key)) {
            return Err(kind.bad(&scaling, &format!("takes no {other}; leave it out")));
        }
        match scaling {
            RopeType::Default => Ok(RopeScaling::Default),
            RopeType::Linear => Linear::from_section(&section).map(RopeScaling::Linear),
            RopeType::Llama3 => Llama3::from_section(&section).map(RopeScaling::Llama3),
            RopeType::Yarn => Yarn::from_section(&section).map(RopeScaling::Yarn),
        }
    }
}

impl Write for RopeScaling {
    fn write(&self) -> Option<Value> {
        let pairs = self.keys_and_values().into_iter().filter_map(|(key, value)| Some((key.to_string(), value?)));
        Some(Table::from_iter(pairs).into())
    }

    fn show(&self) -> String {
        match self {
            RopeScaling::Default => "Default".to_string(),
            RopeScaling::Linear(scaling) => format!("{scaling:?}"),
            RopeScaling::Llama3(scaling) => format!("{scaling:?}"),
            RopeScaling::Yarn(scaling) => format!("{scaling:?}"),
        }
    }
}

impl Model {
    /// The small model of tests and examples: two layers, three query heads that share one key/value head.
    pub fn tiny() -> Model {
        let text = "[model]\narchitecture = \"llama\"\nhidden_size = 12\nintermediate_size = 20\n\
            num_hidden_layers = 2\nnum_attention_heads = 3\nnum_key_value_heads = 1\nvocab_size = 23\n\
            max_position_embeddings = 16\nrope_theta = 10000.0\nrms_norm_eps = 1e-5\n";
        Model::from_toml("Model::tiny".into(), text).expect("it is a valid model")
    }

    /// Reads the `[model]` table of a complete text that [`super::Config::to_toml`] or [`Model::to_toml`] wrote;
    /// messages name `file` as its source.
    pub fn from_toml(file: String, text: &str) -> Result<Model> {
        let Document { table, origins } = Document::parse(file, text)?;
        let model = table.get("model").ok_or_else(|| origins.missing("model", "write a [model] table"))?;
        Model::read(model, "model", &origins)
    }

    /// The `[model]` table alone; [`Model::from_toml`] reads it back.
    pub fn to_toml(&self) -> String {
        table_text("model", &self.own_entries())
    }

    /// The entries of the keys that the model's architecture has.
    pub(super) fn own_entries(&self) -> Vec<Entry<'_>> {
        self.entries().into_iter().filter(|entry| self.architecture.has(entry.key)).collect()
    }

    /// The model's part of the identity of a checkpoint; an imported checkpoint has no other.
    pub fn identity(&self) -> Vec<(String, String)> {
        fixed_in_run("model", &self.entries())
    }
}
