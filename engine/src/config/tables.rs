//! The tables of a configuration besides `[model]`, and the rules between their keys. Rules that depend on the number
//! of ranks are checked in `mesh.rs`.

use super::elapsed::Elapsed;
use super::layout::{self, Ranks};
use super::model::Model;
use super::names::{Named, named};
use super::near::near_multiples;
use super::origins::Origins;
use super::section::{Read, Section, Text, Write, all_defaults, fixed_in_run, need, optional, or, section};
use crate::error::Result;
use std::path::{Path, PathBuf};
use toml::Value;

/// A larger number of samples in a step is a typing error.
const MOST_SAMPLES: u64 = 1 << 22;
pub(super) const MOST_STEPS: u64 = 1 << 40;
/// This is more ranks than any machine has.
pub const MOST_RANKS: u64 = 1 << 20;
/// A longer wait is a typing error: this is a week.
const MOST_SECONDS: u64 = 7 * 86_400;
/// A longer window of steps is a typing error.
const MOST_WINDOW: u64 = 1 << 20;
/// The most channels of a communicator that every version of NCCL accepts.
const MOST_CTAS: u64 = 32;

section! {
    /// The `[train]` table: batch sizes, steps, precision and where the weights come from.
    pub struct Train {
        /// `None`: CUDA if there is a device, else the CPU; the launcher decides.
        pub backend: Option<BackendKind> = optional(),
        /// `None`: bf16 on CUDA, f32 on the CPU.
        pub precision: Option<Precision> = optional(),
        /// Tokens of a sample.
        pub seq_length: usize [InRun] = need("the number of tokens in a sample").within(1..=i32::MAX as u64),
        /// Samples of a micro-batch.
        pub micro_batch_size: usize = or(1).within(1..=MOST_SAMPLES),
        /// Samples of a step, over all ranks.
        pub global_batch_size: usize [InRun] = need("the number of sequences in a step").within(1..=MOST_SAMPLES),
        pub steps: u64 = need("how many steps to train").within(1..=MOST_STEPS),
        pub seed: u32 [InRun] = or(1234),
        pub recompute: Recompute = or(Recompute::None),
        pub load: Load = or(Load::Random),
        /// Coefficient of the mean of log(Z)^2.
        pub z_loss: f64 = or(0.0).not_negative(),
        /// Whether a loaded model whose first loss is no better than guessing ends the run.
        pub refuse_untrained: bool = or(false),
        /// Steps between validations; 0: never.
        pub eval_interval: u64 = or(0),
        /// Global batches of a validation.
        pub eval_steps: u64 = or(10).within(1..=MOST_STEPS),
        /// The time since the start of the process by which the run is to have stopped and saved; `None`: no limit.
        pub stop_before: Option<Elapsed> = optional(),
    }
}

impl Train {
    pub(super) fn check(&self, model: &Model, at: &Origins) -> Result<()> {
        if (self.backend, self.precision) == (Some(BackendKind::Cuda), Some(Precision::F32)) {
            let remedy = "is for the CPU; the backend \"cuda\" computes in \"bf16\"";
            return Err(at.bad("train.precision", "\"f32\"", remedy));
        }
        let (seq, most) = (self.seq_length, model.max_position_embeddings);
        if seq > most {
            let remedy = format!("must be at most model.max_position_embeddings ({most})");
            return Err(at.bad("train.seq_length", seq, remedy));
        }
        let (batch, micro) = (self.global_batch_size as u64, self.micro_batch_size as u64);
        if !batch.is_multiple_of(micro) {
            let near = near_multiples(batch, micro);
            let remedy = format!("must be a multiple of train.micro_batch_size ({micro}); {near}");
            return Err(at.bad("train.global_batch_size", batch, remedy));
        }
        if self.steps.checked_mul(batch).and_then(|samples| samples.checked_mul(seq as u64)).is_none() {
            let remedy = "steps x global_batch_size x seq_length does not fit 64 bits";
            return Err(at.bad("train.steps", self.steps, remedy));
        }
        Ok(())
    }

    /// The part of a checkpoint's identity that this table gives.
    pub(super) fn identity(&self) -> Vec<(String, String)> {
        fixed_in_run("train", &self.entries())
    }
}

named! {
    pub enum BackendKind {
        Cuda = "cuda",
        Cpu = "cpu",
    }
}

named! {
    pub enum Precision {
        Bf16 = "bf16",
        F32 = "f32",
    }
}

named! {
    /// The activations that backward recomputes, so that forward need not keep them.
    pub enum Recompute {
        None = "none",
        /// Outputs of the norms and SwiGLU products, and the rows of experts that ranks do not share. (Megatron's
        /// "selective" means core attention, whose scores are never kept here.)
        Selective = "selective",
        /// All activations of a layer except its input.
        Full = "full",
    }
}

/// The source of the initial weights.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    Random,
    HuggingFace(PathBuf),
}

impl Load {
    /// The directory of the checkpoint that the weights are loaded from.
    pub fn huggingface(&self) -> Option<&Path> {
        match self {
            Load::HuggingFace(dir) => Some(dir),
            Load::Random => None,
        }
    }
}

impl Text for Load {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text.strip_prefix("hf:") {
            Some(dir) if !dir.is_empty() => Ok(Load::HuggingFace(dir.into())),
            None if text == "random" => Ok(Load::Random),
            _ => Err("must be \"random\" or \"hf:DIR\"".to_string()),
        }
    }

    fn text(&self) -> String {
        match self {
            Load::Random => "random".to_string(),
            Load::HuggingFace(dir) => format!("hf:{}", dir.text()),
        }
    }
}

section! {
    /// The degrees of parallelism. The data-parallel degree follows from the number of ranks.
    pub struct Parallel {
        pub tensor: usize = or(1).within(1..=MOST_RANKS),
        pub pipeline: usize = or(1).within(1..=MOST_RANKS),
        pub context: usize = or(1).within(1..=MOST_RANKS)
            .must("context parallelism is not built yet; write 1", |&degree| degree == 1),
        /// Data-parallel ranks that share the experts of each layer.
        pub expert: usize = or(1).within(1..=MOST_RANKS),
        /// Rows that a rank has memory for in the layers with experts, as a multiple of those of even routing; what is
        /// more is computed in further rounds.
        pub expert_buffer: f64 = or(1.5).real("must lie between 1e-3 and 1e6", |x| (1e-3..=1e6).contains(&x)),
        /// Rows of the most loaded rank that shares experts, as a multiple of those of even routing: what plans and dry
        /// runs assume, which route nothing.
        pub expert_imbalance: f64 = or(1.0).real("must lie between 1 and 1e6", |x| (1.0..=1e6).contains(&x)),
        /// Chunks of layers that a stage holds.
        pub virtual_pipeline: usize = or(1).within(1..=MOST_RANKS),
        /// Layers of each chunk in pipeline order; `None`: balanced by cost.
        pub layers: Option<Vec<usize>> = optional(),
        pub sequence_parallel: bool = or(tensor > 1),
        pub distributed_optimizer: bool = or(true),
        /// Data-parallel ranks sum their gradients in this precision; each rank accumulates its own in f32.
        pub gradient_precision: Precision = or(Precision::F32),
        /// The order of the axes, fastest-varying first, each axis once.
        pub order: [Axis; 5] = or([Axis::Tensor, Axis::Context, Axis::Expert, Axis::Data, Axis::Pipeline]),
        /// The number of ranks that the run is meant for, for commands that run without `mpirun`; `None`: any.
        pub ranks: Option<usize> = optional().within(1..=MOST_RANKS),
    }
}

impl Parallel {
    pub(super) fn check(&self, model: &Model, train: &Train, ranks: Ranks, at: &Origins) -> Result<()> {
        layout::check(model, train, self, ranks, at)?;
        let Some(layers) = &self.layers else { return Ok(()) };
        let chunks = self.pipeline * self.virtual_pipeline;
        let bad = |remedy: String| Err(at.bad("parallel.layers", format!("{layers:?}"), remedy));
        if layers.len() != chunks {
            return bad(format!("must have pipeline x virtual_pipeline = {chunks} entries"));
        }
        let total = layers.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if layers.contains(&0) || total != Some(model.num_hidden_layers) {
            return bad(format!(
                "each must be at least 1, and their sum num_hidden_layers ({})",
                model.num_hidden_layers
            ));
        }
        Ok(())
    }
}

impl Default for Parallel {
    /// Data parallelism alone.
    fn default() -> Self {
        all_defaults()
    }
}

named! {
    pub enum Axis {
        Tensor = "tp",
        Context = "cp",
        Expert = "ep",
        Data = "dp",
        Pipeline = "pp",
    }
}

/// The order of the axes, in Megatron's spelling: "tp-cp-ep-dp-pp".
impl Text for [Axis; 5] {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let axes: Option<Vec<Axis>> = text.split('-').map(|name| Axis::parse(name).ok()).collect();
        let axes = axes.filter(|axes| Axis::NAMES.iter().all(|(_, axis)| axes.contains(axis)));
        let axes = axes.and_then(|axes| axes.try_into().ok());
        axes.ok_or_else(|| "must name each axis once, as \"tp-cp-ep-dp-pp\"".to_string())
    }

    fn text(&self) -> String {
        self.map(Named::name).join("-")
    }
}

section! {
    /// NCCL's thread blocks (CTAs) for one call, by the kind of its group. Each occupies a multiprocessor.
    pub struct Nccl {
        /// Tensor-parallel ranks.
        pub tensor_ctas: usize = or(16).within(1..=MOST_CTAS),
        /// Data-parallel ranks.
        pub data_ctas: usize = or(8).within(1..=MOST_CTAS),
        /// Neighbouring pipeline stages, each direction; also groups with few and small calls.
        pub pipeline_ctas: usize = or(4).within(1..=MOST_CTAS)
            .must("must be a power of two: NCCL rounds its channels up to one", |n: &usize| n.is_power_of_two()),
    }
}

impl Default for Nccl {
    fn default() -> Self {
        all_defaults()
    }
}

section! {
    /// AdamW and its learning rate, see [`crate::train::lr`].
    pub struct Optimizer(steps: u64) {
        pub lr: f64 = need("the peak learning rate").not_negative(),
        pub min_lr: f64 = or(0.0).not_negative()
            .real(&format!("must be at most optimizer.lr ({lr})"), |min_lr| min_lr <= lr),
        pub schedule: Schedule = or(Schedule::Cosine),
        /// The number of last steps, in which the schedule `wsd` decays the rate; `None` with another schedule.
        pub decay_steps: Option<u64> = or(with_wsd(schedule, (steps / 10).max(1)))
            .must(only_with_wsd(schedule), |steps| steps.is_none() || schedule == Schedule::Wsd),
        /// The shape of this decay.
        pub decay_shape: Option<DecayShape> = or(with_wsd(schedule, DecayShape::Linear))
            .must(only_with_wsd(schedule), |shape| shape.is_none() || schedule == Schedule::Wsd),
        pub warmup_steps: u64 = or(0),
        pub betas: [f64; 2] = or([0.9, 0.95])
            .must("must be two numbers, from 0 to below 1", |betas| betas.iter().all(|beta| (0.0..1.0).contains(beta))),
        pub eps: f64 = or(1e-8).epsilon(),
        pub weight_decay: f64 = or(0.1).not_negative(),
        /// Largest global L2 norm of the gradient; 0: no clipping.
        pub clip_grad: f64 = or(1.0).not_negative(),
    }
}

fn with_wsd<T>(schedule: Schedule, default: T) -> Option<T> {
    (schedule == Schedule::Wsd).then_some(default)
}

fn only_with_wsd(schedule: Schedule) -> String {
    format!("belongs to schedule = \"wsd\", not {:?}; leave it out", schedule.name())
}

impl Optimizer {
    /// A warm-up may be longer than a short trial run, but a decay that begins during the warm-up would make the rate
    /// jump.
    pub(super) fn check(&self, steps: u64, at: &Origins) -> Result<()> {
        let most = if self.warmup_steps < steps { steps - self.warmup_steps } else { steps };
        match self.decay_steps {
            Some(decay_steps) if !(1..=most).contains(&decay_steps) => {
                let remedy = format!("must lie in 1 ..= {most} (train.steps less the warm-up)");
                Err(at.bad("optimizer.decay_steps", decay_steps, remedy))
            }
            _ => Ok(()),
        }
    }
}

named! {
    pub enum Schedule {
        Cosine = "cosine",
        Linear = "linear",
        Constant = "constant",
        /// Warm-up, stable, decay.
        Wsd = "wsd",
    }
}

named! {
    pub enum DecayShape {
        Linear = "linear",
        OneMinusSqrt = "1-sqrt",
    }
}

/// Two numbers in a list.
impl Read for [f64; 2] {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let betas = Vec::<f64>::read(value, key, at)?;
        betas.try_into().map_err(|_| at.bad(key, value, "must be two numbers, from 0 to below 1"))
    }
}

impl Write for [f64; 2] {
    fn write(&self) -> Option<Value> {
        self.to_vec().write()
    }
}

section! {
    /// The policy for steps whose loss or gradient norm is far above that of the steps before it, and the samples
    /// that are left out of the loss.
    pub struct Spike {
        /// Accepted steps over which mean and standard deviation are taken.
        pub window: u64 = or(128).within(2..=MOST_WINDOW),
        /// Standard deviations above the mean from which on a step is a spike; 0: none is.
        pub threshold: f64 = or(6.0).not_negative(),
        pub action: SpikeAction = or(SpikeAction::Log).must(
            "skips nothing, since spike.threshold is 0; set spike.threshold above 0, or spike.action = \"log\"",
            |action: &SpikeAction| threshold > 0.0 || *action == SpikeAction::Log,
        ),
        /// Ranges `[first, end)` of absolute samples of training whose targets have weight 0.
        pub skip: Vec<[u64; 2]> = or(vec![]).must(
            "must be ranges [first, end) of samples, ascending and apart, as [[1000, 1024], [4096, 4104]]; \
             `data inspect --step N` shows the samples of a step",
            |ranges: &Vec<[u64; 2]>| ranges.as_flattened().is_sorted() && ranges.iter().all(|[first, end]| first < end),
        ),
    }
}

impl Spike {
    /// Whether the targets of this sample have weight 0.
    pub fn skips(&self, sample: u64) -> bool {
        self.skip.iter().any(|[first, end]| (*first..*end).contains(&sample))
    }

    /// The number of the first `samples` samples that are skipped.
    pub fn skipped(&self, samples: u64) -> u64 {
        self.skip.iter().map(|[first, end]| end.min(&samples) - first.min(&samples)).sum()
    }
}

impl Default for Spike {
    fn default() -> Self {
        all_defaults()
    }
}

named! {
    pub enum SpikeAction {
        /// The step is noted in the metrics.
        Log = "log",
        /// It updates nothing, too.
        Skip = "skip",
    }
}

/// A range of samples: its first, and the one after its last.
impl Read for [u64; 2] {
    fn read(value: &Value, key: &str, at: &Origins) -> Result<Self> {
        let range = Vec::<u64>::read(value, key, at)?;
        range
            .try_into()
            .map_err(|_| at.bad(key, value, "must be two numbers: the first sample, and the one after the last"))
    }
}

impl Write for [u64; 2] {
    fn write(&self) -> Option<Value> {
        self.to_vec().write()
    }
}

section! {
    pub struct Checkpoint {
        pub dir: PathBuf = need("the run's directory"),
        /// Steps between checkpoints; 0: none before the last step.
        pub interval: u64 = or(0),
        /// Whether the last step is saved; a benchmark saves no checkpoint.
        pub at_end: bool = or(true),
        /// The number of complete checkpoints to keep; `None`: all.
        pub keep: Option<usize> = optional().within(1..=MOST_STEPS),
        /// Steps between checkpoints that are also exported in Hugging Face's format; 0: none.
        pub export_interval: u64 =
            or(0).must(interval_remedy("an export is made from a checkpoint", interval), multiple_of(interval)),
        /// The checkpoints and exports of multiples of this step are never removed; 0: `keep` alone decides.
        pub keep_every: u64 =
            or(0).must(interval_remedy("only checkpoints can be kept", interval), multiple_of(interval)),
        /// Seconds for which a write is tried again that fails in a way that may pass; 0: not.
        pub retry_seconds: u64 = or(60).within(0..=MOST_SECONDS),
    }
}

fn multiple_of(interval: u64) -> impl Fn(&u64) -> bool {
    move |n: &u64| n.is_multiple_of(interval)
}

/// The remedy for a number of steps between some of the checkpoints; `why` says what it has to do with them.
fn interval_remedy(why: &str, interval: u64) -> String {
    match interval {
        0 => format!("{why}, and checkpoint.interval is 0; set that too"),
        _ => format!("must be a multiple of checkpoint.interval ({interval})"),
    }
}

section! {
    /// The tasks that are scored while a run trains.
    pub struct Eval(checkpoint_interval: u64) {
        /// Task files with choices; none: no tasks are scored.
        pub tasks: Vec<PathBuf> = or(vec![]),
        /// Steps between two evaluations.
        pub interval: u64 = or(if tasks.is_empty() { 0 } else { checkpoint_interval })
            .must(eval_remedy(&tasks, checkpoint_interval), |&n: &u64| match tasks.is_empty() {
                true => n == 0,
                false => n > 0 && n.is_multiple_of(checkpoint_interval),
            }),
        /// The questions of each task that are asked, from the first one on; `None`: all.
        pub limit: Option<usize> = optional().within(1..=MOST_STEPS),
        /// SentencePiece .model or tokenizer.json; `None`: that of the model that is trained.
        pub tokenizer: Option<PathBuf> = optional(),
    }
}

impl Eval {
    /// The table of a file, which may lack it.
    pub(super) fn of_file(file: &Section, checkpoint_interval: u64) -> Result<Eval> {
        match file.table.contains_key("eval") {
            true => {
                Eval::from_section(&file.field("eval").section("an [eval] table", Eval::KEYS)?, checkpoint_interval)
            }
            false => Ok(Eval::default()),
        }
    }
}

impl Default for Eval {
    /// Nothing is scored.
    fn default() -> Self {
        Eval { tasks: Vec::new(), interval: 0, limit: None, tokenizer: None }
    }
}

/// The remedy for a number of steps between evaluations.
fn eval_remedy(tasks: &[PathBuf], checkpoint_interval: u64) -> String {
    match tasks.is_empty() {
        true => "there is nothing to evaluate; name task files in eval.tasks".to_string(),
        false if checkpoint_interval == 0 => interval_remedy("tasks are scored where a checkpoint is saved", 0),
        false => format!("must be a multiple of checkpoint.interval ({checkpoint_interval}), and not 0"),
    }
}

section! {
    /// The watchdog, which ends a run that makes no progress.
    pub struct Watchdog {
        /// Seconds without progress after which a run counts as hanging; 0: never. `None`: the launcher's default.
        pub seconds: Option<u64> = optional().within(0..=MOST_SECONDS),
    }
}

impl Default for Watchdog {
    fn default() -> Self {
        all_defaults()
    }
}

section! {
    pub struct Report {
        /// `None`: looked up by the device's name.
        pub peak_tflops: Option<f64> = optional().positive(),
        /// Steps between two samples of the times of all ranks; 0: no samples. `None`: chosen by the number of ranks.
        pub interval: Option<u64> = optional(),
        /// The cluster file by which each step is compared with its ideal time; `None`: it is not.
        pub cluster: Option<PathBuf> = optional(),
    }
}
