//! How many bytes a step sends between ranks, in closed form, and how many of them leave a node: a pure
//! function of the configuration, the mesh and the seats. Where ranks sit is `seating.rs`'s.
//!
//! Counted is what a step of training exchanges, forward, backward and optimizer, but for the few scalars
//! of the loss and the norm (the kind World).

use engine::config::{Config, Precision, Recompute};
use engine::layout::buckets::{Span, Tie};
use engine::layout::mesh::{GroupKind, Mesh};
use engine::layout::rank_layout::RankLayout;
use engine::model::param_specs::{TpShard, Unit};
use engine::schedule::Direction;
use std::collections::BTreeMap;

/// Bytes of an f32: gradients and statistics.
const ACC: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    AllGather,
    ReduceScatter,
    AllReduce,
    /// To the next stage ([`GroupKind::Activations`]) or the one before ([`GroupKind::Gradients`]).
    Send,
}

/// What a rank's step does with one operation in one kind of group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    pub op: Op,
    pub kind: GroupKind,
    /// Of the full tensors (gathered, or before they are scattered) of all calls of a step together.
    pub bytes: u64,
}

/// The operations of the rank at `rank_layout`, each of these at most once. With T rows of a micro-batch, D
/// hidden size, m micro-batches, L layers, embedding e and head h (0 or 1) of this rank, S the bytes of
/// `[T, D]` activations (`act` bytes an element), f = 1 where `recompute = "full"`:
///
/// - Tensor, with sequence parallelism: all-gathers m S ((6 + 2f) L + e + h), reduce-scatters
///   m S ((4 + 2f) L + e + h), all-reduces of the gradients of norm weights, (2 L + h) D f32.
///   Without: all-reduces m S ((4 + 2f) L + e + h). The head gathers T x 3 f32 of each rank either way.
/// - KvHeads: all-reduces of the gradients of the head's k and v, 2 d D f32 a layer.
/// - Data: reduce-scatters (or all-reduces) of the buckets in f32; Optimizer: all-gathers of their weights.
/// - Tied: an all-reduce of the f32 shard of the table on the first and the last stage.
/// - Activations, Gradients: m messages of `[T/tp, D]` (`[T, D]` without sequence parallelism) for each
///   chunk that is followed, or preceded, by another.
pub fn volumes(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let mut volumes = layers(config, rank_layout, act);
    volumes.extend(buckets(config, rank_layout, act));
    volumes.extend(messages(config, rank_layout, act));
    volumes.retain(|volume| volume.bytes > 0 && rank_layout.members(volume.kind).len() > 1);
    volumes
}

/// What the layers' maths exchanges.
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
        true => vec![tensor(Op::AllGather, gathers + statistics), tensor(Op::ReduceScatter, scatters)],
        false => vec![tensor(Op::AllGather, statistics), tensor(Op::AllReduce, scatters)],
    }
}

/// Gradients and weights, bucket by bucket with the padding.
fn buckets(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let buckets = rank_layout.buckets(config);
    let ranks = rank_layout.optimizer_members(config).len();
    let elements = |which: &dyn Fn(&Span) -> bool| -> u64 {
        buckets.iter().flat_map(|bucket| bucket.ranges(which)).map(|range| range.len() as u64).sum()
    };
    let norms =
        if config.parallel.sequence_parallel { elements(&|span| span.tensor.tp_shard == TpShard::Whole) } else { 0 };
    let heads = elements(&|span| matches!(span.tensor.tp_shard, TpShard::Heads(_)));
    let all: u64 = buckets.iter().map(|bucket| bucket.len as u64).sum();
    let tied: u64 = buckets.iter().filter(|b| b.tie != Tie::Free).map(|b| (b.len / ranks) as u64).sum();
    let volume = |op, kind, bytes| Volume { op, kind, bytes };
    let mut out = vec![
        volume(Op::AllReduce, GroupKind::Tensor, norms * ACC),
        volume(Op::AllReduce, GroupKind::KvHeads, heads * ACC),
        volume(Op::AllReduce, GroupKind::Tied, tied * ACC),
    ];
    let gradient = if config.parallel.gradient_precision == Precision::F32 { ACC } else { act };
    match config.parallel.distributed_optimizer {
        true => out.extend([
            volume(Op::ReduceScatter, GroupKind::Data, all * gradient),
            volume(Op::AllGather, GroupKind::Optimizer, all * act),
        ]),
        false => out.push(volume(Op::AllReduce, GroupKind::Data, all * gradient)),
    }
    out
}

/// From stage to stage.
fn messages(config: &Config, rank_layout: &RankLayout, act: u64) -> Vec<Volume> {
    let (rows, cols) = rank_layout.message_shape(config);
    let message = (rows * cols) as u64 * act;
    let send = |direction, kind| {
        let chunks = (0..rank_layout.pipe.chunks)
            .filter(|&chunk| rank_layout.pipe.target(direction, rank_layout.stage, chunk).is_some());
        Volume { op: Op::Send, kind, bytes: (rank_layout.pipe.n_mbs * chunks.count()) as u64 * message }
    };
    vec![send(Direction::Activations, GroupKind::Activations), send(Direction::Gradients, GroupKind::Gradients)]
}

/// Whom the rank sends to in its group of `kind`, and how many ranks that group has.
fn next(rank_layout: &RankLayout, kind: GroupKind) -> (usize, u64) {
    let members = rank_layout.members(kind);
    let at = members.iter().position(|&rank| rank == rank_layout.rank).expect("a rank is in its group");
    let step = if kind == GroupKind::Gradients { members.len() - 1 } else { 1 };
    (members[(at + step) % members.len()], members.len() as u64)
}

/// Bytes of a step by the way they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crossing {
    /// Between ranks of one node.
    pub inside: u64,
    /// Between nodes.
    pub network: u64,
}

/// What all ranks of a step send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    pub by_kind: BTreeMap<GroupKind, Crossing>,
    /// What each node sends over the network.
    pub by_node: BTreeMap<usize, u64>,
}

impl Links {
    pub fn total(&self) -> Crossing {
        sum(self.by_kind.values())
    }

    /// In groups of these kinds.
    pub fn of(&self, kinds: &[GroupKind]) -> Crossing {
        sum(kinds.iter().filter_map(|kind| self.by_kind.get(kind)))
    }

    /// The most that a node sends over the network.
    pub fn busiest(&self) -> u64 {
        self.by_node.values().copied().max().unwrap_or_default()
    }
}

fn sum<'a>(crossings: impl Iterator<Item = &'a Crossing>) -> Crossing {
    crossings.fold(Crossing::default(), |a, b| Crossing { inside: a.inside + b.inside, network: a.network + b.network })
}

/// What crosses which way, `nodes` being the node of each rank of the mesh. Collectives are rings: of a
/// tensor of S bytes each of n ranks sends S (n - 1) / n to the next, twice that for an all-reduce.
pub fn crossing(config: &Config, mesh: &Mesh, act: u64, nodes: &[usize]) -> Links {
    let mut links = Links::default();
    for rank in 0..mesh.ranks() {
        let rank_layout = RankLayout::new(config, mesh.clone(), rank);
        for volume in volumes(config, &rank_layout, act) {
            let (next, n) = next(&rank_layout, volume.kind);
            let bytes = match volume.op {
                Op::AllGather | Op::ReduceScatter => volume.bytes * (n - 1) / n,
                Op::AllReduce => 2 * volume.bytes * (n - 1) / n,
                Op::Send => volume.bytes,
            };
            let crossing = links.by_kind.entry(volume.kind).or_default();
            if nodes[rank] == nodes[next] {
                crossing.inside += bytes;
            } else {
                crossing.network += bytes;
                *links.by_node.entry(nodes[rank]).or_default() += bytes;
            }
        }
    }
    links
}

#[cfg(test)]
mod tests;
