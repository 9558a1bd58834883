//! The model's shape, and the one place that lists its fields. The `[model]` table, `config.json` (see [`super::hf`]),
//! the identity of a checkpoint and the check of loaded weights all follow from the declaration of [`Model`]: a new
//! field is one line there. It needs a default, which is used for older checkpoints without the field.

use super::document::Document;
use super::names::{Named, named};
use super::origins::Origins;
use super::section::{Read, Rule, Section, Write, fixed_in_run, need, optional, or, section, table_text};
use crate::error::Result;
use std::path::PathBuf;
use toml::{Table, Value};

/// Widths and counts of heads; any product of two, times the layers, still fits 64 bits.
const WIDEST: u64 = 1 << 20;
const DEEPEST: u64 = 1 << 14;
/// Token ids and positions are 32-bit in the data files.
const LONGEST: u64 = i32::MAX as u64;
/// The remedy for a missing size.
const SIZE: &str = "its value, or hf = \"DIR\" to take it from a config.json";

section! {
    /// The shape of a model, in Hugging Face's names.
    pub struct Model {
        /// The directory of the Hugging Face checkpoint whose `config.json` gave the shape, if any.
        pub hf: Option<PathBuf> = optional(),
        pub architecture: Architecture [InWeights] = need("architecture = \"llama\""),
        pub hidden_size: usize [InWeights] = need(SIZE).within(1..=WIDEST),
        pub intermediate_size: usize [InWeights] = need(SIZE).within(1..=WIDEST),
        pub num_hidden_layers: usize [InWeights] = need(SIZE).within(1..=DEEPEST),
        // The engine does not need this if head_dim is given, but transformers cannot load such a Llama.
        pub num_attention_heads: usize [InWeights] = need(SIZE).within(1..=WIDEST)
            .must(format!("must divide hidden_size ({hidden_size})"), |&heads| hidden_size.is_multiple_of(heads)),
        pub num_key_value_heads: usize [InWeights] = or(num_attention_heads).within(1..=WIDEST)
            .must(format!("must divide num_attention_heads ({num_attention_heads})"), |&heads| {
                num_attention_heads.is_multiple_of(heads)
            }),
        pub head_dim: usize [InWeights] = or(hidden_size / num_attention_heads).within(1..=WIDEST)
            .must("must be even: the rotary embedding rotates pairs", |dim| dim.is_multiple_of(2))
            .must(format!("num_attention_heads ({num_attention_heads}) x head_dim must be at most {WIDEST}"), |&dim| {
                (num_attention_heads * dim) as u64 <= WIDEST
            }),
        pub vocab_size: usize [InWeights] = need(SIZE).within(1..=LONGEST),
        pub max_position_embeddings: usize [InRun] = need(SIZE).within(1..=LONGEST),
        pub rope_theta: f64 [InModel] = need("rope_theta = 10000.0 (Llama 2) or what the model was trained with")
            .real("must lie between 1 and 1e30", |x| (1.0..=1e30).contains(&x)),
        pub rope_scaling: RopeScaling [InModel] = or(RopeScaling::Default),
        /// W: a query attends to itself and to the W - 1 positions before it.
        pub sliding_window: Option<usize> [InModel] = optional().within(1..=LONGEST)
            .must(architecture.without("sliding windows", Architecture::Mistral), |window| {
                window.is_none() || architecture == Architecture::Mistral
            }),
        pub rms_norm_eps: f64 [InModel] = need("rms_norm_eps = 1e-5 or what the model was trained with").epsilon(),
        pub tie_word_embeddings: bool [InWeights] = or(false),
        pub initializer_range: f64 = or(0.02).real("must lie between 0 and 1", |x| (0.0..=1.0).contains(&x)),
    }
    refuses {
        num_local_experts: Option<u64> = not_built("experts"),
        num_experts_per_tok: Option<u64> = not_built("experts"),
        embedding_scale: f64 = or(1.0).must("scaled embeddings are not built yet; leave it out", |&scale| scale == 1.0),
    }
}

fn not_built<'r>(what: &str) -> Rule<'r, Option<u64>> {
    optional().must(format!("{what} are not built yet; leave it out"), Option::is_none)
}

named! {
    pub enum Architecture {
        Llama = "llama",
        Mistral = "mistral",
    }
    not_built ["mixtral"]
}

impl Architecture {
    /// The remedy for a key that only `other` has.
    fn without(self, what: &str, other: Architecture) -> String {
        let [own, other] = [self, other].map(|architecture| architecture.name());
        format!("a {own} has no {what}; leave it out, or write architecture = \"{other}\"")
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

/// The properties that may differ from layer to layer, which [`Model::layer`] chooses. Parameters, FLOPs and the
/// positions that a query attends to are taken from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    pub attention: AttentionKind,
    pub mlp: MlpKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKind {
    /// To all positions up to the query's own.
    Full,
    /// To the last W of them.
    Window(usize),
}

impl AttentionKind {
    /// The first position that a query at `position` attends to.
    pub fn first(self, position: u32) -> u32 {
        match self {
            AttentionKind::Full => 0,
            AttentionKind::Window(window) => (position + 1).saturating_sub(window as u32),
        }
    }

    /// Twice the mean number of positions that a query attends to in a sequence of `seq` tokens: `seq` without a
    /// window, `2 W - W^2 / seq` with one.
    pub fn span(self, seq: usize) -> usize {
        match self {
            AttentionKind::Window(window) if window < seq => 2 * window - window * window / seq,
            _ => seq,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    SwiGlu { intermediate_size: usize },
}

impl Model {
    /// Layer `l`, counted in the order of the forward pass.
    pub fn layer(&self, l: usize) -> Layer {
        assert!(l < self.num_hidden_layers, "layer {l} of {}", self.num_hidden_layers);
        Layer {
            attention: self.sliding_window.map_or(AttentionKind::Full, AttentionKind::Window),
            mlp: MlpKind::SwiGlu { intermediate_size: self.intermediate_size },
        }
    }

    /// The layers in the order of the forward pass.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = Layer> + '_ {
        (0..self.num_hidden_layers).map(|l| self.layer(l))
    }

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
        table_text("model", &self.entries())
    }

    /// The model's part of the identity of a checkpoint; an imported checkpoint has no other.
    pub fn identity(&self) -> Vec<(String, String)> {
        fixed_in_run("model", &self.entries())
    }
}
