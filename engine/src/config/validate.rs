//! Raw tables -> a valid [`Config`], once: defaults are filled in here and nowhere else. The model's
//! table has a file of its own; what depends on the number of ranks is in `mesh.rs`.

use super::check::{epsilon, need, not_negative, number, path, size, whole};
use super::names::{Named, choose};
use super::near::near_multiples;
use super::origins::Origins;
use super::raw::{Raw, RawCheckpoint, RawData, RawOptimizer, RawParallel, RawReport, RawSource, RawTrain};
use super::{
    Axis, BackendKind, Checkpoint, Config, Data, DecayShape, Load, Model, Optimizer, Order, Parallel, Precision, Ranks,
    Recompute, Report, Schedule, Source, Train, layout, model,
};
use crate::error::Result;
use std::path::PathBuf;

/// More samples in a step than this are a slip of the pen.
const MOST_SAMPLES: u64 = 1 << 22;
const MOST_STEPS: u64 = 1 << 40;
/// More ranks than any machine has.
pub const MOST_RANKS: u64 = 1 << 20;
/// Megatron's blend keeps the number of a source in 16 bits.
const MOST_SOURCES: usize = 32_766;
const ORDER: &str = "tp-cp-ep-dp-pp";

/// `ranks`: those that it is read for.
pub fn validate(raw: Raw, ranks: Ranks, at: &Origins) -> Result<Config> {
    let model = model::validate(need(raw.model, "model", "a [model] table", at)?, at)?;
    let train = train(need(raw.train, "train", "a [train] table", at)?, &model, at)?;
    let parallel = raw.parallel.map_or(Ok(Parallel::default()), |raw| parallel(raw, &model, &train, ranks, at))?;
    let optimizer = optimizer(need(raw.optimizer, "optimizer", "an [optimizer] table", at)?, train.steps, at)?;
    let data = data(need(raw.data, "data", "a [data] table", at)?, at)?;
    if train.eval_interval > 0 && data.valid.is_empty() && data.split[1] == 0.0 {
        let remedy = "there is nothing to validate on; name data.valid, or give data.split a second share";
        return Err(at.bad("train.eval_interval", train.eval_interval, remedy));
    }
    let checkpoint = checkpoint(need(raw.checkpoint, "checkpoint", "a [checkpoint] table", at)?, at)?;
    let report = report(raw.report.unwrap_or_default(), at)?;
    Ok(Config { model, train, parallel, optimizer, data, checkpoint, report })
}

fn train(raw: RawTrain, model: &Model, at: &Origins) -> Result<Train> {
    let backend = raw.backend.map(|word| choose(BackendKind::NAMES, &word, "train.backend", at)).transpose()?;
    let precision = raw.precision.map(|word| choose(Precision::NAMES, &word, "train.precision", at)).transpose()?;
    if (backend, precision) == (Some(BackendKind::Cuda), Some(Precision::F32)) {
        return Err(at.bad("train.precision", "\"f32\"", "is for the CPU; the backend \"cuda\" computes in \"bf16\""));
    }
    let seq_length = need(raw.seq_length, "train.seq_length", "the tokens of a sample", at)?;
    if seq_length > model.max_position_embeddings as u64 {
        let remedy = format!("must be at most model.max_position_embeddings ({})", model.max_position_embeddings);
        return Err(at.bad("train.seq_length", seq_length, remedy));
    }
    let batch = need(raw.global_batch_size, "train.global_batch_size", "the sequences of a step", at)?;
    let batch = whole(batch, 1..=MOST_SAMPLES, "train.global_batch_size", at)?;
    let micro = whole(raw.micro_batch_size.unwrap_or(1), 1..=MOST_SAMPLES, "train.micro_batch_size", at)?;
    if !batch.is_multiple_of(micro) {
        let remedy =
            format!("must be a multiple of train.micro_batch_size ({micro}); {}", near_multiples(batch, micro));
        return Err(at.bad("train.global_batch_size", batch, remedy));
    }
    let steps = need(raw.steps, "train.steps", "how many steps to train", at)?;
    let steps = whole(steps, 1..=MOST_STEPS, "train.steps", at)?;
    if steps.checked_mul(batch).and_then(|samples| samples.checked_mul(seq_length)).is_none() {
        return Err(at.bad("train.steps", steps, "steps x global_batch_size x seq_length does not fit 64 bits"));
    }
    let recompute = raw.recompute.as_deref().unwrap_or("none");
    Ok(Train {
        backend,
        precision,
        seq_length: size(seq_length, 1..=i32::MAX as u64, "train.seq_length", at)?,
        micro_batch_size: micro as usize,
        global_batch_size: batch as usize,
        steps,
        seed: whole(raw.seed.unwrap_or(1234), 0..=u32::MAX.into(), "train.seed", at)? as u32,
        recompute: choose(Recompute::NAMES, recompute, "train.recompute", at)?,
        load: load(raw.load.as_deref().unwrap_or("random"), at)?,
        z_loss: not_negative(raw.z_loss.unwrap_or(0.0), "train.z_loss", at)?,
        eval_interval: raw.eval_interval.unwrap_or(0),
        eval_steps: whole(raw.eval_steps.unwrap_or(10), 1..=MOST_STEPS, "train.eval_steps", at)?,
    })
}

fn load(word: &str, at: &Origins) -> Result<Load> {
    match word.strip_prefix("hf:") {
        Some(dir) if !dir.is_empty() => Ok(Load::HuggingFace(dir.into())),
        None if word == "random" => Ok(Load::Random),
        _ => Err(at.bad("train.load", format!("{word:?}"), "must be \"random\" or \"hf:DIR\"")),
    }
}

fn parallel(raw: RawParallel, model: &Model, train: &Train, ranks: Ranks, at: &Origins) -> Result<Parallel> {
    let number = |value: u64, key: &str| size(value, 1..=MOST_RANKS, key, at);
    let degree = |value: Option<u64>, key: &str| number(value.unwrap_or(1), key);
    let tensor = degree(raw.tensor, "parallel.tensor")?;
    let mut parallel = Parallel {
        tensor,
        pipeline: degree(raw.pipeline, "parallel.pipeline")?,
        context: degree(raw.context, "parallel.context")?,
        expert: degree(raw.expert, "parallel.expert")?,
        virtual_pipeline: degree(raw.virtual_pipeline, "parallel.virtual_pipeline")?,
        layers: None,
        sequence_parallel: raw.sequence_parallel.unwrap_or(tensor > 1),
        distributed_optimizer: raw.distributed_optimizer.unwrap_or(true),
        gradient_precision: raw
            .gradient_precision
            .map_or(Ok(Precision::F32), |word| choose(Precision::NAMES, &word, "parallel.gradient_precision", at))?,
        order: order(raw.order.as_deref().unwrap_or(ORDER), at)?,
        ranks: raw.ranks.map(|value| number(value, "parallel.ranks")).transpose()?,
    };
    layout::check(model, train, &parallel, ranks, at)?;
    let chunks = parallel.pipeline * parallel.virtual_pipeline;
    parallel.layers = raw.layers.map(|counts| layers(counts, chunks, model, at)).transpose()?;
    Ok(parallel)
}

impl Default for Parallel {
    /// Data parallelism alone.
    fn default() -> Self {
        Parallel {
            tensor: 1,
            pipeline: 1,
            context: 1,
            expert: 1,
            virtual_pipeline: 1,
            layers: None,
            sequence_parallel: false,
            distributed_optimizer: true,
            gradient_precision: Precision::F32,
            order: [Axis::Tensor, Axis::Context, Axis::Expert, Axis::Data, Axis::Pipeline],
            ranks: None,
        }
    }
}

/// Layers of each chunk: as many as chunks, none empty, all of the model's.
fn layers(counts: Vec<u64>, chunks: usize, model: &Model, at: &Origins) -> Result<Vec<usize>> {
    let fail = |remedy: String| Err(at.bad("parallel.layers", format!("{counts:?}"), remedy));
    if counts.len() != chunks {
        return fail(format!("must have pipeline x virtual_pipeline = {chunks} entries"));
    }
    let total = counts.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
    if counts.contains(&0) || total != Some(model.num_hidden_layers as u64) {
        return fail(format!("each must be at least 1, all together num_hidden_layers ({})", model.num_hidden_layers));
    }
    Ok(counts.into_iter().map(|n| n as usize).collect())
}

fn order(word: &str, at: &Origins) -> Result<[Axis; 5]> {
    let axis = |name: &str| Axis::NAMES.iter().find(|(known, _)| *known == name).map(|(_, axis)| *axis);
    let axes: Option<Vec<Axis>> = word.split('-').map(axis).collect();
    let axes = axes.filter(|axes| Axis::NAMES.iter().all(|(_, axis)| axes.contains(axis)));
    let axes: Option<[Axis; 5]> = axes.and_then(|axes| axes.try_into().ok());
    axes.ok_or_else(|| at.bad("parallel.order", format!("{word:?}"), format!("must name each axis once, as {ORDER:?}")))
}

fn optimizer(raw: RawOptimizer, steps: u64, at: &Origins) -> Result<Optimizer> {
    let lr = not_negative(need(raw.lr, "optimizer.lr", "the peak learning rate", at)?, "optimizer.lr", at)?;
    let min_lr = not_negative(raw.min_lr.unwrap_or(0.0), "optimizer.min_lr", at)?;
    if min_lr > lr {
        return Err(at.bad("optimizer.min_lr", min_lr, format!("must be at most optimizer.lr ({lr})")));
    }
    let warmup_steps = raw.warmup_steps.unwrap_or(0);
    let word = raw.schedule.as_deref().unwrap_or("cosine");
    let schedule = schedule(word, raw.decay_steps, raw.decay_shape.as_deref(), steps, warmup_steps, at)?;
    let betas = raw.betas.unwrap_or(vec![0.9, 0.95]);
    let betas: [f64; 2] = match betas[..] {
        [first, second] if betas.iter().all(|beta| (0.0..1.0).contains(beta)) => [first, second],
        _ => return Err(at.bad("optimizer.betas", format!("{betas:?}"), "must be two numbers, from 0 to below 1")),
    };
    Ok(Optimizer {
        lr,
        min_lr,
        schedule,
        warmup_steps,
        betas,
        eps: epsilon(raw.eps.unwrap_or(1e-8), "optimizer.eps", at)?,
        weight_decay: not_negative(raw.weight_decay.unwrap_or(0.1), "optimizer.weight_decay", at)?,
        clip_grad: not_negative(raw.clip_grad.unwrap_or(1.0), "optimizer.clip_grad", at)?,
    })
}

fn schedule(
    word: &str,
    decay_steps: Option<u64>,
    shape: Option<&str>,
    steps: u64,
    warmup: u64,
    at: &Origins,
) -> Result<Schedule> {
    let simple = [("cosine", Schedule::Cosine), ("linear", Schedule::Linear), ("constant", Schedule::Constant)];
    let decay = decay_steps.unwrap_or((steps / 10).max(1));
    let wsd = |shape| Schedule::Wsd { decay_steps: decay, shape };
    let names = [&simple[..], &[("wsd", wsd(DecayShape::Linear))]].concat();
    let schedule = choose(&names, word, "optimizer.schedule", at)?;
    if word != "wsd" {
        let key = match (decay_steps, shape) {
            (None, None) => return Ok(schedule),
            (Some(_), _) => "optimizer.decay_steps",
            (None, Some(_)) => "optimizer.decay_shape",
        };
        let value = decay_steps.map_or(format!("{:?}", shape.unwrap_or_default()), |n| n.to_string());
        return Err(at.bad(key, value, format!("belongs to schedule = \"wsd\", not {word:?}; leave it out")));
    }
    // A warm-up may outlast a short trial run; a decay that begins inside it would jump.
    let most = if warmup < steps { steps - warmup } else { steps };
    if decay == 0 || decay > most {
        let remedy = format!("must lie in 1 ..= {most} (train.steps less the warm-up)");
        return Err(at.bad("optimizer.decay_steps", decay, remedy));
    }
    let shape = choose(DecayShape::NAMES, shape.unwrap_or("linear"), "optimizer.decay_shape", at)?;
    Ok(wsd(shape))
}

fn data(raw: RawData, at: &Origins) -> Result<Data> {
    let train = need(raw.train, "data.train", "train = [ { prefix = \"data/text\" } ]", at)?;
    if train.is_empty() {
        return Err(at.bad("data.train", "[]", "must name a source, as [ { prefix = \"data/text\" } ]"));
    }
    let word = raw.order.as_deref().unwrap_or("megatron");
    let valid = sources(raw.valid.unwrap_or_default(), "data.valid", at)?;
    let split = raw.split.as_deref().unwrap_or("1,0,0");
    Ok(Data {
        train: sources(train, "data.train", at)?,
        valid,
        split: shares(split, at)?,
        order: choose(Order::NAMES, word, "data.order", at)?,
        mask_document_boundaries: raw.mask_document_boundaries.unwrap_or(false),
        allow_mixed_tokenizers: raw.allow_mixed_tokenizers.unwrap_or(false),
    })
}

fn sources(raw: Vec<RawSource>, key: &str, at: &Origins) -> Result<Vec<Source>> {
    if raw.len() > MOST_SOURCES {
        return Err(at.bad(key, format!("{} sources", raw.len()), format!("must be at most {MOST_SOURCES}")));
    }
    let weighted = raw.iter().filter(|source| source.weight.is_some()).count();
    if weighted != 0 && weighted != raw.len() {
        let first = raw.iter().position(|source| source.weight.is_none()).unwrap_or_default();
        return Err(at.missing(&format!("{key}[{first}].weight"), "give every source a weight, or none"));
    }
    let source = |(i, raw): (usize, RawSource)| -> Result<Source> {
        let (prefix_key, weight_key) = (format!("{key}[{i}].prefix"), format!("{key}[{i}].weight"));
        let prefix: PathBuf = path(need(raw.prefix, &prefix_key, "prefix = \"data/text\"", at)?, &prefix_key, at)?;
        let positive = |w| number(w, |w| w > 0.0, "must be positive; leave out a source of no weight", &weight_key, at);
        Ok(Source { prefix, weight: raw.weight.map(positive).transpose()? })
    };
    raw.into_iter().enumerate().map(source).collect()
}

/// `949,50,1`: shares of train, validation and test.
fn shares(word: &str, at: &Origins) -> Result<[f64; 3]> {
    let parts: Option<Vec<f64>> = word.split(',').map(|part| part.trim().parse().ok()).collect();
    let parts = parts.filter(|parts| parts.iter().all(|share| share.is_finite() && *share >= 0.0));
    match parts.as_deref() {
        Some(&[train, valid, test]) if train > 0.0 && (train + valid + test).is_finite() => Ok([train, valid, test]),
        _ => {
            let remedy = "must be three shares, none negative, the first positive, as \"949,50,1\"";
            Err(at.bad("data.split", format!("{word:?}"), remedy))
        }
    }
}

fn checkpoint(raw: RawCheckpoint, at: &Origins) -> Result<Checkpoint> {
    let dir = need(raw.dir, "checkpoint.dir", "the run's directory", at)?;
    let keep = raw.keep.map(|keep| size(keep, 1..=MOST_STEPS, "checkpoint.keep", at)).transpose()?;
    let (interval, at_end) = (raw.interval.unwrap_or(0), raw.at_end.unwrap_or(true));
    Ok(Checkpoint { dir: path(dir, "checkpoint.dir", at)?, interval, at_end, keep })
}

fn report(raw: RawReport, at: &Origins) -> Result<Report> {
    let positive = |peak| number(peak, |peak| peak > 0.0, "must be positive", "report.peak_tflops", at);
    Ok(Report { peak_tflops: raw.peak_tflops.map(positive).transpose()?, interval: raw.interval })
}
