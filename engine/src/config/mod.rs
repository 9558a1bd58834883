//! The validated configuration: numbers only, made once, before anything is built.
//! Text becomes raw tables, these become a [`Config`]; nothing below has defaults of its own.

mod changes;
mod check;
mod cluster;
mod document;
pub mod hf;
mod layout;
mod load;
mod model;
mod names;
mod near;
mod origins;
mod raw;
mod reached;
#[cfg(test)]
mod tests;
mod text;
mod unbuilt;
mod validate;

pub use cluster::Cluster;
pub use layout::{Ranks, can_be, ranks_used, samples};
pub use names::Named;
pub use near::{near_multiples, near_pairs};
pub use reached::{Overlap, Reached, Software};
use std::path::PathBuf;
pub use validate::MOST_RANKS;

/// Everything a run is made of. Every field is valid and consistent with the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub model: Model,
    pub train: Train,
    pub parallel: Parallel,
    pub optimizer: Optimizer,
    pub data: Data,
    pub checkpoint: Checkpoint,
    pub report: Report,
}

/// The shape of a Llama (Hugging Face's names).
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub rms_norm_eps: f64,
    pub tie_word_embeddings: bool,
    pub initializer_range: f64,
    /// The directory of the Hugging Face checkpoint whose `config.json` gave the shape, if any.
    pub hf: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Llama,
}

/// How the rotary frequencies are stretched for contexts longer than the model was born with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    Default,
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: usize },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    /// `None`: CUDA where there is a device, else the CPU; the launcher decides.
    pub backend: Option<BackendKind>,
    /// `None`: bf16 on CUDA, f32 on the CPU.
    pub precision: Option<Precision>,
    /// Tokens of a sample.
    pub seq_length: usize,
    /// Samples of a micro-batch.
    pub micro_batch_size: usize,
    /// Samples of a step, over all ranks.
    pub global_batch_size: usize,
    pub steps: u64,
    pub seed: u32,
    pub recompute: Recompute,
    pub load: Load,
    pub z_loss: f64,
    /// Steps between validations; 0: never.
    pub eval_interval: u64,
    /// Global batches of a validation.
    pub eval_steps: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    Cpu,
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

/// What a stage keeps of a layer between forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recompute {
    None,
    Selective,
    Full,
}

/// Where the first weights come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    Random,
    HuggingFace(PathBuf),
}

/// The degrees of parallelism; data parallelism is what is left of the ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Parallel {
    pub tensor: usize,
    pub pipeline: usize,
    pub context: usize,
    pub expert: usize,
    pub virtual_pipeline: usize,
    pub layers: Option<Vec<usize>>,
    pub sequence_parallel: bool,
    pub distributed_optimizer: bool,
    /// What data-parallel ranks add gradients up in; each rank adds up its own in f32.
    pub gradient_precision: Precision,
    /// Fastest-varying first, each axis once.
    pub order: [Axis; 5],
    /// How many ranks the run is meant for, where no `mpirun` says it; `None`: as many as there are.
    pub ranks: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    Tensor,
    Context,
    Expert,
    Data,
    Pipeline,
}

/// AdamW and its learning rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    pub lr: f64,
    pub min_lr: f64,
    pub schedule: Schedule,
    pub warmup_steps: u64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradient; 0: no clipping.
    pub clip_grad: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    Cosine,
    Linear,
    Constant,
    Wsd { decay_steps: u64, shape: DecayShape },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecayShape {
    Linear,
    OneMinusSqrt,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    pub train: Vec<Source>,
    pub valid: Vec<Source>,
    /// Shares of train, validation and test, as given.
    pub split: [f64; 3],
    pub order: Order,
    pub mask_document_boundaries: bool,
    /// Whether sources may be made by different tokenizers, or by another than the model's.
    pub allow_mixed_tokenizers: bool,
}

/// One pair of `.bin` / `.idx` files and its weight in the mixture, `None` where the user gave none.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub prefix: PathBuf,
    pub weight: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Megatron,
    Sequential,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    pub dir: PathBuf,
    /// Steps between checkpoints; 0: none before the last step.
    pub interval: u64,
    /// Whether the last step is kept; a run that only measures leaves nothing.
    pub at_end: bool,
    /// How many complete checkpoints stay; `None`: all.
    pub keep: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub peak_tflops: Option<f64>,
    /// Steps from one sample of all ranks' time to the next; 0: there are none. `None`: by the number of ranks.
    pub interval: Option<u64>,
}
