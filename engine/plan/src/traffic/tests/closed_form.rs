//! The traffic of a step in closed form, derived from the shapes of the layers: the oracle for the dry run.

use engine::config::{Config, Precision, Recompute};
use engine::layout::buckets::{Bucket, Span, Tie, sharded_over};
use engine::layout::mesh::GroupKind;
use engine::layout::rank_layout::RankLayout;
use engine::model::param_specs::{TpShard, Unit};
use engine::schedule::Direction;

/// Bytes of an f32: gradients and statistics.
const ACC: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collective {
    AllGather,
    ReduceScatter,
    AllReduce,
    AllToAll,
    /// To the next stage ([`GroupKind::Activations`]) or the one before ([`GroupKind::Gradients`]).
    Send,
}

/// The calls of one operation in one kind of group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    pub op: Collective,
    pub kind: GroupKind,
    /// Bytes of the full tensors (gathered, or before they are scattered) of all calls of a step.
    pub bytes: u64,
}

/// The operations of the rank at `rank_layout`, each of these at most once. With T rows of a micro-batch, D
/// hidden size, m micro-batches, L layers, embedding e and head h (0 or 1) of this rank, S the bytes of
/// `[T, D]` activations (`act` bytes an element), f = 1 where `recompute = "full"`:
///
/// - Tensor, with sequence parallelism: all-gathers m S ((6 + 2f) L + e + h), reduce-scatters
///   m S ((4 + 2f) L + e + h), all-reduces of the gradients of norm weights, (2 L + h) D f32.
///   Without: all-reduces m S ((4 + 2f) L + e + h). The head gathers T x 3 f32 of each rank either way.
/// - Experts, for the k T choices of a micro-batch that are for other ranks (evenly routed), in each layer with
///   experts: all-to-alls of (2 + f) 2 D activations and (2 + f) f32; all-gathers of the counts, (1 + f) n E.
/// - KvHeads: all-reduces of the gradients of the head's k and v, 2 d D f32 a layer.
/// - Tensor: all-reduces of the gradients of routers, E D f32 a layer.
/// - ExpertData, ExpertOptimizer: as Data and Optimizer, for the buckets of experts.
/// - Data: reduce-scatters (or all-reduces) of the buckets in f32; Optimizer: all-gathers of their weights.
/// - Tied: an all-reduce of the f32 shard of the table on the first and the last stage.
/// - Activations, Gradients: m messages of `[T/tp, D]` (`[T, D]` without sequence parallelism) for each
///   chunk that is followed, or preceded, by another.
pub fn volumes(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let mut volumes = layers(config, rank_layout, act);
    volumes.extend(experts(config, rank_layout, act));
    volumes.extend(buckets(config, rank_layout, act));
    volumes.extend(messages(config, rank_layout, act));
    volumes.retain(|volume| volume.bytes > 0 && rank_layout.members(volume.kind).len() > 1);
    volumes
}

/// Calls of the layers.
fn layers(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let units = || rank_layout.chunks.iter().flatten();
    let layers = units().filter(|unit| matches!(unit, Unit::Layer(_))).count() as u64;
    let ends = units().count() as u64 - layers;
    let heads = units().filter(|unit| **unit == Unit::Head).count() as u64;
    let again = if config.train.recompute == Recompute::Full { 2 } else { 0 };

    let rows = (config.train.micro_batch_size * config.train.seq_length) as u64;
    let m = rank_layout.pipe.n_mbs as u64;
    let activations = |each: u64| m * rows * config.model.hidden_size as u64 * act * (each * layers + ends);
    let statistics = m * heads * rank_layout.tp.1 as u64 * rows * 3 * ACC;
    let (gathers, scatters) = (activations(6 + again), activations(4 + again));
    let tensor = |op, bytes| Volume { op, kind: GroupKind::Tensor, bytes };
    match config.parallel.sequence_parallel {
        true => vec![tensor(Collective::AllGather, gathers + statistics), tensor(Collective::ReduceScatter, scatters)],
        false => vec![tensor(Collective::AllGather, statistics), tensor(Collective::AllReduce, scatters)],
    }
}

/// Rows on their way to experts and back, and the numbers of them.
fn experts(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let layers = rank_layout.chunks.iter().flatten().filter_map(|unit| match unit {
        Unit::Layer(l) => config.model.layer(*l).experts(),
        _ => None,
    });
    let again = if config.train.recompute == Recompute::Full { 1 } else { 0 };
    let (rows, m) = ((config.train.micro_batch_size * config.train.seq_length) as u64, rank_layout.pipe.n_mbs as u64);
    let n = rank_layout.experts.ranks as u64;
    let (mut moved, mut counts) = (0, 0);
    for of in layers {
        let elsewhere = rows * of.per_token as u64 * (n - 1) / n;
        moved += m * elsewhere * (2 + again) * (2 * config.model.hidden_size as u64 * act + ACC);
        counts += m * (1 + again) * n * of.count as u64 * ACC;
    }
    let volume = |op, bytes| Volume { op, kind: GroupKind::Experts, bytes };
    vec![volume(Collective::AllToAll, moved), volume(Collective::AllGather, counts)]
}

/// Gradients and weights, bucket by bucket with the padding.
fn buckets(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let buckets = rank_layout.buckets(config);
    let ranks = rank_layout.members(GroupKind::Optimizer).len();
    let partial = elements_of(&buckets, &|span| span.tensor.tp_shard == TpShard::Partial);
    let elements = |which: &dyn Fn(&Span) -> bool| elements_of(&buckets, which);
    let norms =
        if config.parallel.sequence_parallel { elements(&|span| span.tensor.tp_shard == TpShard::Whole) } else { 0 };
    let heads = elements(&|span| matches!(span.tensor.tp_shard, TpShard::Heads(_)));
    let all = |kind| buckets.iter().filter(|b| b.reduced_over == kind).map(|b| b.len as u64).sum::<u64>();
    let tied: u64 = buckets.iter().filter(|b| b.tie != Tie::Free).map(|b| (b.len / ranks) as u64).sum();
    let volume = |op, kind, bytes| Volume { op, kind, bytes };
    let mut out = vec![
        volume(Collective::AllReduce, GroupKind::Tensor, (norms + partial) * ACC),
        volume(Collective::AllReduce, GroupKind::KvHeads, heads * ACC),
        volume(Collective::AllReduce, GroupKind::Tied, tied * ACC),
    ];
    let gradient = if config.parallel.gradient_precision == Precision::F32 { ACC } else { act };
    for kind in [GroupKind::Data, GroupKind::ExpertData] {
        match config.parallel.distributed_optimizer {
            true => out.extend([
                volume(Collective::ReduceScatter, kind, all(kind) * gradient),
                volume(Collective::AllGather, sharded_over(kind), all(kind) * act),
            ]),
            false => out.push(volume(Collective::AllReduce, kind, all(kind) * gradient)),
        }
    }
    out
}

fn elements_of(buckets: &[Bucket], which: &dyn Fn(&Span) -> bool) -> u64 {
    buckets.iter().flat_map(|bucket| bucket.ranges(which)).map(|range| range.len() as u64).sum()
}

/// Messages between stages.
fn messages(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let (rows, cols) = rank_layout.message_shape(config);
    let message = (rows * cols) as u64 * act;
    let send = |direction, kind| {
        let chunks = (0..rank_layout.pipe.chunks)
            .filter(|&chunk| rank_layout.pipe.target(direction, rank_layout.stage, chunk).is_some());
        Volume { op: Collective::Send, kind, bytes: (rank_layout.pipe.n_mbs * chunks.count()) as u64 * message }
    };
    vec![send(Direction::Activations, GroupKind::Activations), send(Direction::Gradients, GroupKind::Gradients)]
}
