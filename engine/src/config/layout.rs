//! Layouts that a model cannot have on any number of ranks, refused with the nearest that it can: of those that
//! the ranks at hand can run, where they can run any. What depends on the number of ranks is in `mesh.rs`.

use super::near::{near, near_multiples, near_pairs};
use super::origins::Origins;
use super::{Model, Parallel, Train};
use crate::error::{Result, counted};

/// How many ranks a configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranks {
    AtHand(usize),
    /// As many as it says itself, if it does.
    Its,
}

/// The first thing in `p` that cannot be; `p.layers` is not looked at.
pub fn check(model: &Model, train: &Train, p: &Parallel, ranks: Ranks, at: &Origins) -> Result<()> {
    let hand = match ranks {
        Ranks::AtHand(ranks) => Some(ranks),
        Ranks::Its => p.ranks,
    };
    check_tensor(model, train, p, hand, at)?;
    check_chunks(model, train, p, hand, at)?;
    check_interleaving(train, p, hand, at)?;
    check_ranks(p, at)
}

/// Ranks of one data-parallel share.
pub fn ranks_used(p: &Parallel) -> usize {
    p.tensor * p.pipeline * p.context
}

/// The global batch must be a multiple of so many samples on `dp` data-parallel ranks.
pub fn samples(train: &Train, p: &Parallel, dp: usize) -> usize {
    let together = if p.virtual_pipeline > 1 { p.pipeline } else { 1 };
    train.micro_batch_size * dp * together
}

/// Do `ranks` ranks make whole data-parallel shares, each with whole micro-batches?
fn run_on(ranks: usize, train: &Train, p: &Parallel) -> bool {
    let used = ranks_used(p);
    ranks.is_multiple_of(used) && train.global_batch_size.is_multiple_of(samples(train, p, ranks / used))
}

/// What `search` finds among that which the ranks at hand can run, and where that is nothing, among all; with the
/// words that say which.
fn nearest<T>(
    hand: Option<usize>,
    search: impl Fn(&dyn Fn(&Train, &Parallel) -> bool) -> Option<T>,
) -> Option<(String, T)> {
    let here = |ranks| Some((format!("on {} ", counted(ranks, "rank")), search(&|train, p| run_on(ranks, train, p))?));
    hand.and_then(here).or_else(|| Some((String::new(), search(&|_, _| true)?)))
}

/// Can the layout be, as far as its number of ranks does not matter?
pub fn can_be(model: &Model, train: &Train, p: &Parallel) -> bool {
    let chunks = p.pipeline * p.virtual_pipeline;
    tensor_fault(p.tensor, model).is_none()
        && (!p.sequence_parallel || rows(train).is_multiple_of(p.tensor))
        && chunks_fit(p.pipeline, p.virtual_pipeline, model)
        && interleaves(p.pipeline, p.virtual_pipeline, train)
        && p.layers.as_ref().is_none_or(|layers| layers.len() == chunks)
        && p.ranks.is_none_or(|ranks| ranks.is_multiple_of(p.tensor * p.pipeline * p.context))
}

fn check_tensor(model: &Model, train: &Train, p: &Parallel, hand: Option<usize>, at: &Origins) -> Result<()> {
    let splits_rows = |tensor| !p.sequence_parallel || rows(train).is_multiple_of(tensor);
    let split_fault = tensor_fault(p.tensor, model);
    if split_fault.is_none() && splits_rows(p.tensor) {
        return Ok(());
    }
    let fits = |tensor| tensor_fault(tensor, model).is_none() && splits_rows(tensor);
    let (here, tensors) = nearest(hand, |can_run| {
        let fits = |tensor| fits(tensor) && can_run(train, &Parallel { tensor, ..p.clone() });
        near(p.tensor, model.num_attention_heads, fits)
    })
    .expect("1 divides all");
    let remedy = match split_fault {
        Some(fault) => format!("{fault}; {here}{tensors}"),
        None => format!(
            "sequence parallelism wants it to divide train.micro_batch_size ({}) x seq_length ({}); {here}{tensors}, or \
             keep it with {}parallel.sequence_parallel = false",
            train.micro_batch_size,
            train.seq_length,
            near_micro_batch(train, p, hand)
        ),
    };
    Err(at.bad("parallel.tensor", p.tensor, remedy))
}

/// Why the weights cannot be split over `tensor` ranks.
fn tensor_fault(tensor: usize, model: &Model) -> Option<String> {
    let (heads, kv_heads) = (model.num_attention_heads, model.num_key_value_heads);
    if !heads.is_multiple_of(tensor) {
        return Some(format!("must divide model.num_attention_heads ({heads})"));
    }
    // With more ranks than key/value heads, several ranks hold the same head.
    if !kv_heads.is_multiple_of(tensor) && !tensor.is_multiple_of(kv_heads) {
        return Some(format!("must divide model.num_key_value_heads ({kv_heads}) or be a multiple of it"));
    }
    if !model.intermediate_size.is_multiple_of(tensor) {
        return Some(format!("must divide model.intermediate_size ({})", model.intermediate_size));
    }
    let share = model.vocab_size.div_ceil(tensor);
    if share * (tensor - 1) >= model.vocab_size {
        let vocab = model.vocab_size;
        return Some(format!("model.vocab_size ({vocab}) in shares of {share} rows leaves the last rank none"));
    }
    None
}

/// Rows of a micro-batch.
fn rows(train: &Train) -> usize {
    train.micro_batch_size * train.seq_length
}

/// The micro-batches around the configured one whose rows the tensor-parallel ranks can share, as a remedy.
fn near_micro_batch(train: &Train, p: &Parallel, hand: Option<usize>) -> String {
    let batch = train.global_batch_size;
    let fits = |micro| batch.is_multiple_of(micro) && (micro * train.seq_length).is_multiple_of(p.tensor);
    let found = nearest(hand, |can_run| {
        let with = |micro_batch_size| Train { micro_batch_size, ..train.clone() };
        near(train.micro_batch_size, batch, |micro| fits(micro) && can_run(&with(micro), p))
    });
    found.map_or(String::new(), |(here, near)| format!("micro_batch_size ({here}{near}) or "))
}

fn check_chunks(model: &Model, train: &Train, p: &Parallel, hand: Option<usize>, at: &Origins) -> Result<()> {
    let (pipeline, chunks) = (p.pipeline, p.virtual_pipeline);
    if pipeline == 1 && chunks > 1 {
        return Err(at.bad("parallel.virtual_pipeline", chunks, "interleaving wants parallel.pipeline > 1; write 1"));
    }
    if chunks_fit(pipeline, chunks, model) {
        return Ok(());
    }
    let layers = model.num_hidden_layers;
    let fewer = || (1..=layers).flat_map(|p| (1..=chunks.min(layers / p)).map(move |v| (p, v)));
    let (here, fit) = nearest(hand, |can_run| {
        let with = |(pipeline, virtual_pipeline)| Parallel { pipeline, virtual_pipeline, ..p.clone() };
        let fit = fewer().filter(|&(p, v)| chunks_fit(p, v, model) && interleaves(p, v, train));
        let pairs = near_pairs((pipeline, chunks), fit.filter(|&pair| can_run(train, &with(pair))));
        (!pairs.is_empty()).then_some(pairs)
    })
    .expect("one stage of one chunk fits");
    let fit: Vec<String> = fit.into_iter().map(|(p, v)| format!("pipeline {p} x virtual_pipeline {v}")).collect();
    let remedy = format!(
        "x virtual_pipeline ({chunks}) makes more chunks than model.num_hidden_layers ({layers}); {here}the nearest: {}",
        fit.join(" or ")
    );
    Err(at.bad("parallel.pipeline", pipeline, remedy))
}

/// Each chunk has a layer, and where a stage has more than one, they travel a ring.
fn chunks_fit(pipeline: usize, chunks: usize, model: &Model) -> bool {
    pipeline * chunks <= model.num_hidden_layers && (pipeline > 1 || chunks == 1)
}

fn check_interleaving(train: &Train, p: &Parallel, hand: Option<usize>, at: &Origins) -> Result<()> {
    if interleaves(p.pipeline, p.virtual_pipeline, train) {
        return Ok(());
    }
    let (batch, micro) = (train.global_batch_size, train.micro_batch_size);
    let hand = hand.filter(|ranks| ranks.is_multiple_of(ranks_used(p)));
    let here = hand.map_or(String::new(), |ranks| format!("on {} ", counted(ranks, "rank")));
    let dp = hand.map_or(1, |ranks| ranks / ranks_used(p));
    let plain = Parallel { virtual_pipeline: 1, ..p.clone() };
    let keep =
        if batch.is_multiple_of(samples(train, &plain, dp)) { ", or keep it with virtual_pipeline = 1" } else { "" };
    let remedy = format!(
        "interleaving wants train.global_batch_size ({batch}) to be a multiple of micro_batch_size ({micro}) x pipeline \
         ({}); {here}{}{keep}",
        p.pipeline,
        near_multiples(batch as u64, samples(train, p, dp) as u64)
    );
    Err(at.bad("parallel.virtual_pipeline", p.virtual_pipeline, remedy))
}

/// Interleaved micro-batches go round in groups of as many as there are stages.
fn interleaves(pipeline: usize, chunks: usize, train: &Train) -> bool {
    chunks == 1 || (train.global_batch_size / train.micro_batch_size).is_multiple_of(pipeline)
}

/// Each data-parallel share has as many ranks as the other axes use.
fn check_ranks(p: &Parallel, at: &Origins) -> Result<()> {
    let used = p.tensor * p.pipeline * p.context;
    let Some(ranks) = p.ranks.filter(|ranks| !ranks.is_multiple_of(used)) else { return Ok(()) };
    let nearest = near_multiples(ranks as u64, used as u64);
    Err(at.bad(
        "parallel.ranks",
        ranks,
        format!("must be a multiple of tensor x pipeline x context ({used}); {nearest}"),
    ))
}
