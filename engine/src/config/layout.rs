//! Layouts: their enumeration, the rules for valid layouts, and the messages that refuse a layout that is invalid on
//! every number of ranks. A message names the nearest valid values: those that run on the given number of ranks, if
//! there are any. Messages about the number of ranks are in `mesh.rs`.

use super::near::{near, near_multiples, near_pairs};
use super::origins::Origins;
use super::{Config, Layer, Model, Parallel, Train};
use crate::error::{Result, counted};

/// The number of ranks that a configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranks {
    AtHand(usize),
    /// `parallel.ranks`, if it is set.
    Its,
}

/// Refuses the first invalid value of `p`. `p.layers` is checked elsewhere.
pub fn check(model: &Model, train: &Train, p: &Parallel, ranks: Ranks, at: &Origins) -> Result<()> {
    let hand = match ranks {
        Ranks::AtHand(ranks) => Some(ranks),
        Ranks::Its => p.ranks,
    };
    check_tensor(model, train, p, hand, at)?;
    check_expert(model, p, at)?;
    check_chunks(model, train, p, hand, at)?;
    check_interleaving(train, p, hand, at)?;
    check_ranks(p, at)
}

/// Ranks of one model replica.
pub fn ranks_used(p: &Parallel) -> usize {
    p.tensor * p.pipeline * p.context
}

/// The factor of a message about ranks where experts are shared.
pub fn by_expert(p: &Parallel) -> &'static str {
    if p.expert > 1 { " x expert" } else { "" }
}

/// The number of samples that the global batch must be a multiple of on `dp` data-parallel ranks.
pub fn samples(train: &Train, p: &Parallel, dp: usize) -> usize {
    let together = if p.virtual_pipeline > 1 { p.pipeline } else { 1 };
    train.micro_batch_size * dp * together
}

/// The pairs (tensor, pipeline) whose product divides `ranks`, up to these values, in ascending order.
pub fn degrees(ranks: usize, tensor: usize, pipeline: usize) -> impl Iterator<Item = (usize, usize)> {
    let divisors = |n: usize, most: usize| (1..=n.min(most)).filter(move |&d| n.is_multiple_of(d));
    divisors(ranks, tensor).flat_map(move |t| divisors(ranks / t, pipeline).map(move |p| (t, p)))
}

/// The numbers of chunks (virtual pipeline stages) that each of `pipeline` stages can have.
pub fn chunk_counts(pipeline: usize, layers: usize) -> impl Iterator<Item = usize> {
    (1..=layers / pipeline).filter(move |&chunks| chunks_fit(pipeline, chunks, layers))
}

impl Config {
    /// This configuration in another layout. Sequence parallelism is off on one tensor-parallel rank, and on by default
    /// if this configuration has only one; layers that were assigned by hand are kept only if the chunks stay the same.
    pub fn with_layout(&self, tensor: usize, pipeline: usize, virtual_pipeline: usize) -> Config {
        let own = &self.parallel;
        let sequence_parallel = tensor > 1 && (own.sequence_parallel || own.tensor == 1);
        let same_chunks = (pipeline, virtual_pipeline) == (own.pipeline, own.virtual_pipeline);
        let layers = own.layers.clone().filter(|_| same_chunks);
        let parallel = Parallel { tensor, pipeline, virtual_pipeline, layers, sequence_parallel, ..own.clone() };
        Config { parallel, ..self.clone() }
    }

    /// Whether `ranks` ranks can train in this layout: true exactly if reading the configuration and [`Config::mesh`]
    /// both succeed.
    pub fn runs_on(&self, ranks: usize) -> bool {
        can_be(&self.model, &self.train, &self.parallel) && run_on(ranks, &self.train, &self.parallel)
    }
}

/// Whether `ranks` ranks make whole model replicas, each with the same whole number of micro-batches.
fn run_on(ranks: usize, train: &Train, p: &Parallel) -> bool {
    let used = ranks_used(p);
    ranks.is_multiple_of(used * p.expert) && train.global_batch_size.is_multiple_of(samples(train, p, ranks / used))
}

/// The result of `search` among the values that the given ranks can run, or else among all valid values; and the words
/// that tell a message which of the two it is.
fn nearest<T>(
    hand: Option<usize>,
    search: impl Fn(&dyn Fn(&Train, &Parallel) -> bool) -> Option<T>,
) -> Option<(String, T)> {
    let here = |ranks| Some((format!("on {} ", counted(ranks, "rank")), search(&|train, p| run_on(ranks, train, p))?));
    hand.and_then(here).or_else(|| Some((String::new(), search(&|_, _| true)?)))
}

/// Whether the layout is valid on some number of ranks.
fn can_be(model: &Model, train: &Train, p: &Parallel) -> bool {
    tensor_fits(model, train, p)
        && expert_fault(model, p.expert).is_none()
        && chunks_fit(p.pipeline, p.virtual_pipeline, model.num_hidden_layers)
        && interleaves(p.pipeline, p.virtual_pipeline, train)
        && p.layers.as_ref().is_none_or(|layers| layers.len() == p.pipeline * p.virtual_pipeline)
        && p.ranks.is_none_or(|ranks| ranks.is_multiple_of(ranks_used(p) * p.expert))
}

/// Whether tensor-parallel ranks can share the weights and, with sequence parallelism, the rows.
fn tensor_fits(model: &Model, train: &Train, p: &Parallel) -> bool {
    tensor_fault(p.tensor, model).is_none() && (!p.sequence_parallel || rows(train).is_multiple_of(p.tensor))
}

fn check_tensor(model: &Model, train: &Train, p: &Parallel, hand: Option<usize>, at: &Origins) -> Result<()> {
    if tensor_fits(model, train, p) {
        return Ok(());
    }
    let (here, tensors) = nearest(hand, |can_run| {
        let with = |tensor| Parallel { tensor, ..p.clone() };
        let fits = |tensor| tensor_fits(model, train, &with(tensor)) && can_run(train, &with(tensor));
        near(p.tensor, model.num_attention_heads, fits)
    })
    .expect("1 divides all");
    let remedy = match tensor_fault(p.tensor, model) {
        Some(fault) => format!("{fault}; {here}{tensors}"),
        None => format!(
            "sequence parallelism needs it to divide train.micro_batch_size ({}) x seq_length ({}); {here}{tensors}, \
             or keep it with {}parallel.sequence_parallel = false",
            train.micro_batch_size,
            train.seq_length,
            near_micro_batch(train, p, hand)
        ),
    };
    Err(at.bad("parallel.tensor", p.tensor, remedy))
}

/// The reason why the weights cannot be split over `tensor` ranks, if there is one.
fn tensor_fault(tensor: usize, model: &Model) -> Option<String> {
    let (heads, kv_heads) = (model.num_attention_heads, model.num_key_value_heads);
    if !heads.is_multiple_of(tensor) {
        return Some(format!("must divide model.num_attention_heads ({heads})"));
    }
    // With more ranks than key/value heads, several ranks hold the same head.
    if !kv_heads.is_multiple_of(tensor) && !tensor.is_multiple_of(kv_heads) {
        return Some(format!("must divide model.num_key_value_heads ({kv_heads}) or be a multiple of it"));
    }
    let width = |layer: Layer| layer.mlp().intermediate_size;
    if let Some(layer) = model.layers().find(|layer| !width(*layer).is_multiple_of(tensor)) {
        let of_expert = layer.experts().is_some() && model.moe_intermediate_size > 0;
        let key = if of_expert { "moe_intermediate_size" } else { "intermediate_size" };
        return Some(format!("must divide model.{key} ({})", width(layer)));
    }
    let share = model.vocab_size.div_ceil(tensor);
    if share * (tensor - 1) >= model.vocab_size {
        let vocab = model.vocab_size;
        return Some(format!("model.vocab_size ({vocab}) in shares of {share} rows leaves the last rank none"));
    }
    None
}

fn check_expert(model: &Model, p: &Parallel, at: &Origins) -> Result<()> {
    let Some(fault) = expert_fault(model, p.expert) else { return Ok(()) };
    let nearest = near(p.expert, model.experts().max(1), |expert| expert_fault(model, expert).is_none());
    Err(at.bad("parallel.expert", p.expert, format!("{fault}; {}", nearest.expect("1 divides all"))))
}

/// The reason why `expert` ranks cannot share the experts, if there is one.
fn expert_fault(model: &Model, expert: usize) -> Option<String> {
    match model.experts() {
        _ if expert == 1 => None,
        0 => Some("the model has no experts to share".to_string()),
        experts if !experts.is_multiple_of(expert) => Some(format!("must divide model.num_local_experts ({experts})")),
        _ => None,
    }
}

/// Rows of a micro-batch.
fn rows(train: &Train) -> usize {
    train.micro_batch_size * train.seq_length
}

/// The nearest micro-batch sizes whose rows the tensor-parallel ranks can share, as part of a remedy.
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
        return Err(at.bad("parallel.virtual_pipeline", chunks, "interleaving needs parallel.pipeline > 1; write 1"));
    }
    let layers = model.num_hidden_layers;
    if chunks_fit(pipeline, chunks, layers) {
        return Ok(());
    }
    let fewer = || (1..=layers).flat_map(|p| chunk_counts(p, layers).filter(|&v| v <= chunks).map(move |v| (p, v)));
    let (here, fit) = nearest(hand, |can_run| {
        let with = |(pipeline, virtual_pipeline)| Parallel { pipeline, virtual_pipeline, ..p.clone() };
        let fit = fewer().filter(|&(p, v)| interleaves(p, v, train) && can_run(train, &with((p, v))));
        let pairs = near_pairs((pipeline, chunks), fit);
        (!pairs.is_empty()).then_some(pairs)
    })
    .expect("one stage of one chunk fits");
    let fit: Vec<String> = fit.into_iter().map(|(p, v)| format!("pipeline {p} x virtual_pipeline {v}")).collect();
    let remedy = format!(
        "x virtual_pipeline ({chunks}) makes more chunks than model.num_hidden_layers ({layers}); {here}the nearest: \
         {}",
        fit.join(" or ")
    );
    Err(at.bad("parallel.pipeline", pipeline, remedy))
}

/// Whether each chunk has a layer; several chunks per stage need several stages.
fn chunks_fit(pipeline: usize, chunks: usize, layers: usize) -> bool {
    pipeline * chunks <= layers && (pipeline > 1 || chunks == 1)
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
        "interleaving needs train.global_batch_size ({batch}) to be a multiple of micro_batch_size ({micro}) x \
         pipeline ({}); {here}{}{keep}",
        p.pipeline,
        near_multiples(batch as u64, samples(train, p, dp) as u64)
    );
    Err(at.bad("parallel.virtual_pipeline", p.virtual_pipeline, remedy))
}

/// Whether the number of micro-batches is a multiple of the number of stages, as interleaving needs.
fn interleaves(pipeline: usize, chunks: usize, train: &Train) -> bool {
    chunks == 1 || (train.global_batch_size / train.micro_batch_size).is_multiple_of(pipeline)
}

fn check_ranks(p: &Parallel, at: &Origins) -> Result<()> {
    let used = ranks_used(p) * p.expert;
    let Some(ranks) = p.ranks.filter(|ranks| !ranks.is_multiple_of(used)) else { return Ok(()) };
    let nearest = near_multiples(ranks as u64, used as u64);
    Err(at.bad(
        "parallel.ranks",
        ranks,
        format!("must be a multiple of tensor x pipeline x context{} ({used}); {nearest}", by_expert(p)),
    ))
}
