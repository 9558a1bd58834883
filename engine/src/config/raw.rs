//! The tables of a configuration file as they are typed: every key optional, every type checked,
//! no key unknown, nothing else decided. The keys of families that are not built yet are here too.

use super::origins::{Origins, join, nearest, shorten};
use crate::error::{Error, Result};
use toml::{Table, Value};

/// What a TOML value can become. `key` is the value's dotted path, for messages.
pub trait Read: Sized {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self>;
}

/// A struct of optional values, the list of its keys, and how it is read from a TOML table.
macro_rules! table {
    ($name:ident { $($key:ident: $type:ty),* $(,)? }) => {
        #[derive(Debug, Clone, Default)]
        pub struct $name { $(pub $key: Option<$type>),* }

        impl $name {
            pub const KEYS: &[&str] = &[$(stringify!($key)),*];
        }

        impl Read for $name {
            fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
                let table = known(value, key, Self::KEYS, at)?;
                Ok(Self { $($key: optional(table, key, stringify!($key), at)?),* })
            }
        }
    };
}

pub(super) use table;

table!(Raw {
    model: RawModel,
    train: RawTrain,
    parallel: RawParallel,
    optimizer: RawOptimizer,
    data: RawData,
    checkpoint: RawCheckpoint,
    report: RawReport,
});

table!(RawModel {
    hf: String,
    architecture: String,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: u64,
    head_dim: u64,
    vocab_size: u64,
    max_position_embeddings: u64,
    rope_theta: f64,
    rope_scaling: RawRope,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    initializer_range: f64,
    sliding_window: u64,
    num_local_experts: u64,
    num_experts_per_tok: u64,
    embedding_scale: f64,
});

table!(RawRope {
    rope_type: String,
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_max_position_embeddings: u64,
});

table!(RawTrain {
    backend: String,
    precision: String,
    seq_length: u64,
    micro_batch_size: u64,
    global_batch_size: u64,
    steps: u64,
    seed: u64,
    recompute: String,
    load: String,
    z_loss: f64,
    eval_interval: u64,
    eval_steps: u64,
});

table!(RawParallel {
    tensor: u64,
    pipeline: u64,
    context: u64,
    expert: u64,
    virtual_pipeline: u64,
    layers: Vec<u64>,
    sequence_parallel: bool,
    distributed_optimizer: bool,
    gradient_precision: String,
    order: String,
    ranks: u64,
});

table!(RawOptimizer {
    lr: f64,
    min_lr: f64,
    schedule: String,
    warmup_steps: u64,
    decay_steps: u64,
    decay_shape: String,
    betas: Vec<f64>,
    eps: f64,
    weight_decay: f64,
    clip_grad: f64,
});

table!(RawData {
    train: Vec<RawSource>,
    valid: Vec<RawSource>,
    split: String,
    order: String,
    mask_document_boundaries: bool,
    allow_mixed_tokenizers: bool,
});

table!(RawSource { prefix: String, weight: f64 });

table!(RawCheckpoint { dir: String, interval: u64, at_end: bool, keep: u64 });

table!(RawReport { peak_tflops: f64, interval: u64 });

/// The tables of the file and their keys.
const TABLES: [(&str, &[&str]); 7] = [
    ("model", RawModel::KEYS),
    ("train", RawTrain::KEYS),
    ("parallel", RawParallel::KEYS),
    ("optimizer", RawOptimizer::KEYS),
    ("data", RawData::KEYS),
    ("checkpoint", RawCheckpoint::KEYS),
    ("report", RawReport::KEYS),
];

/// The table at `path`, with no keys but these.
pub(super) fn known<'a>(value: &'a Value, path: &str, keys: &[&str], at: &Origins) -> Result<&'a Table> {
    let table = value.as_table().ok_or_else(|| wrong_type(value, path, "a table", at))?;
    match table.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => Err(unknown(path, key, keys, at)),
        None => Ok(table),
    }
}

fn unknown(table: &str, key: &str, keys: &[&str], at: &Origins) -> Error {
    let label = at.label(&join(table, key));
    let holder = if table.is_empty() { "a configuration".to_string() } else { format!("[{table}]") };
    // A key above the first table header belongs below one.
    let home = TABLES.iter().find(|(_, inner)| table.is_empty() && inner.contains(&key));
    let hint = match (home, nearest(key, keys)) {
        (Some((home, _)), _) => format!("it belongs to [{home}]"),
        (None, Some(near)) => format!("did you mean {near:?}?"),
        (None, None) => format!("known are {}", keys.join(", ")),
    };
    Error::user(format!("{label}: {holder} has no key {:?}; {hint}", shorten(key)))
}

pub(super) fn optional<T: Read>(table: &Table, path: &str, key: &str, at: &Origins) -> Result<Option<T>> {
    table.get(key).map(|value| T::read(value, &join(path, key), at)).transpose()
}

fn wrong_type(value: &Value, key: &str, wanted: &str, at: &Origins) -> Error {
    at.bad(key, value, format!("{wanted} is needed"))
}

impl Read for u64 {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let number = value.as_integer().and_then(|i| u64::try_from(i).ok());
        number.ok_or_else(|| wrong_type(value, key, "a whole number, not negative,", at))
    }
}

impl Read for f64 {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let number = value.as_float().or(value.as_integer().map(|i| i as f64));
        number.filter(|x| x.is_finite()).ok_or_else(|| wrong_type(value, key, "a finite number", at))
    }
}

impl Read for bool {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        value.as_bool().ok_or_else(|| wrong_type(value, key, "true or false", at))
    }
}

impl Read for String {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        value.as_str().map(str::to_string).ok_or_else(|| wrong_type(value, key, "a text in quotes", at))
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let items = value.as_array().ok_or_else(|| wrong_type(value, key, "a list in brackets", at))?;
        items.iter().enumerate().map(|(i, item)| T::read(item, &format!("{key}[{i}]"), at)).collect()
    }
}
