//! How many bytes a step sends between ranks, in closed form, and how many of them leave a node: a pure
//! function of the configuration, the mesh and the seats. Where ranks sit is `placement.rs`'s.
//!
//! Counted are the tensors of training, forward, backward and optimizer. Not counted: scalars (the
//! norm, the loss's totals), what starts and ends a run, validation, and the padding of buckets (less
//! than one element a data-parallel rank and bucket).

use crate::config::{Axis, Config, Recompute};
use crate::inventory::{self, Slot};
use crate::mesh::{Kind, Mesh};
use std::collections::BTreeMap;

/// Bytes of an f32: gradients and statistics.
const ACC: u64 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    AllGather,
    ReduceScatter,
    AllReduce,
    /// To the next stage ([`Kind::Activations`]) or the one before ([`Kind::Gradients`]).
    Send,
}

/// What a rank's step does with one operation in one kind of group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub op: Op,
    pub kind: Kind,
    /// Of the full tensors (gathered, or before they are scattered) of all calls of a step together.
    pub bytes: u64,
}

/// A step of training.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    pub config: &'a Config,
    pub mesh: &'a Mesh,
    /// The slots of each chunk, in pipeline order: chunk c is on stage c modulo the stages.
    pub chunks: &'a [Vec<Slot>],
    /// Bytes of an element of activations and weights.
    pub act: u64,
}

/// What a rank holds.
struct Part {
    slots: Vec<Slot>,
    layers: u64,
    embedding: u64,
    head: u64,
}

impl Step<'_> {
    /// The operations of `rank`, each of these at most once, in bytes of the full tensors. With T rows of
    /// a micro-batch, D hidden size, m micro-batches and L layers, embedding e and head h (0 or 1) of this
    /// rank, S = T D elements of activations, f = 1 where `recompute = "full"`:
    ///
    /// - Tensor, with sequence parallelism: all-gathers m S ((6 + 2f) L + e + h), reduce-scatters
    ///   m S ((4 + 2f) L + e + h), an all-reduce of the gradients of norm weights (2 L + h) D f32.
    ///   Without: all-reduces m S ((4 + 2f) L + e + h). The head gathers T x 3 f32 of each rank either way.
    /// - KvHeads: an all-reduce of the gradients of a head's k and v, 2 d D f32 a layer.
    /// - Data: reduce-scatter (or all-reduce) of the gradients in f32; Optimizer: all-gather of the weights.
    /// - Activations, Gradients: m messages of this rank's rows for each of its chunks that is followed,
    ///   or preceded, by another.
    /// - Tied: an all-reduce of the f32 shard of the table on the first and the last stage.
    pub fn flows(&self, rank: usize) -> Vec<Flow> {
        let part = self.part(rank);
        let mut flows = self.tensor(&part);
        flows.extend(self.data(rank, &part));
        flows.extend(self.pipeline(rank));
        flows.retain(|flow| flow.bytes > 0 && self.members(rank, flow.kind).len() > 1);
        flows
    }

    fn part(&self, rank: usize) -> Part {
        let slots: Vec<Slot> = self.held_chunks(rank).flat_map(|c| self.chunks[c].clone()).collect();
        let has = |wanted| slots.contains(&wanted) as u64;
        let layers = slots.iter().filter(|slot| matches!(slot, Slot::Layer(_))).count() as u64;
        Part { layers, embedding: has(Slot::Embedding), head: has(Slot::Head), slots }
    }

    fn held_chunks(&self, rank: usize) -> impl Iterator<Item = usize> {
        let (stage, stages) = (self.mesh.coord(rank, Axis::Pipeline), self.mesh.size(Axis::Pipeline));
        (stage..self.chunks.len()).step_by(stages)
    }

    fn tensor(&self, part: &Part) -> Vec<Flow> {
        let (m, p) = (&self.config.model, &self.config.parallel);
        let again = if self.config.train.recompute == Recompute::Full { 2 } else { 0 };
        let regions = |each: u64| each * part.layers + part.embedding + part.head;
        let activations = |times: u64| self.micro_batches() * self.rows() * m.hidden_size as u64 * self.act * times;
        let (gathers, scatters) = (activations(regions(6 + again)), activations(regions(4 + again)));
        let statistics = self.micro_batches() * p.tensor as u64 * self.rows() * 3 * ACC * part.head;
        let norms = (2 * part.layers + part.head) * m.hidden_size as u64 * ACC;
        let heads = part.layers * 2 * (m.head_dim * m.hidden_size) as u64 * ACC;
        let tensor = |op, bytes| Flow { op, kind: Kind::Tensor, bytes };
        let mut flows = match p.sequence_parallel {
            true => vec![
                tensor(Op::AllGather, gathers + statistics),
                tensor(Op::ReduceScatter, scatters),
                tensor(Op::AllReduce, norms),
            ],
            false => vec![tensor(Op::AllGather, statistics), tensor(Op::AllReduce, scatters)],
        };
        flows.push(Flow { op: Op::AllReduce, kind: Kind::KvHeads, bytes: heads });
        flows
    }

    fn data(&self, rank: usize, part: &Part) -> Vec<Flow> {
        let model = &self.config.model;
        let held = |slot| -> u64 {
            let (tp, ranks) = (self.mesh.coord(rank, Axis::Tensor), self.mesh.size(Axis::Tensor));
            inventory::tensors(model, slot).iter().map(|tensor| tensor.held(tp, ranks).len() as u64).sum()
        };
        let tied = model.tie_word_embeddings && part.embedding != part.head;
        let table = if tied { held(Slot::Embedding) } else { 0 };
        // The last stage's head has no table of its own where the first stage's is its own too.
        let elements = part.slots.iter().map(|&slot| held(slot)).sum::<u64>() + table * part.head;
        let ranks = self.mesh.size(Axis::Data) as u64;
        let flow = |op, kind, bytes| Flow { op, kind, bytes };
        match self.config.parallel.distributed_optimizer {
            true => vec![
                flow(Op::ReduceScatter, Kind::Data, elements * ACC),
                flow(Op::AllGather, Kind::Optimizer, elements * self.act),
                flow(Op::AllReduce, Kind::Tied, table.div_ceil(ranks) * ACC),
            ],
            false => {
                vec![flow(Op::AllReduce, Kind::Data, elements * ACC), flow(Op::AllReduce, Kind::Tied, table * ACC)]
            }
        }
    }

    fn pipeline(&self, rank: usize) -> Vec<Flow> {
        let p = &self.config.parallel;
        let rows = if p.sequence_parallel { self.rows() / p.tensor as u64 } else { self.rows() };
        let message = rows * self.config.model.hidden_size as u64 * self.act;
        let messages = |chunks: usize| self.micro_batches() * chunks as u64 * message;
        let followed = self.held_chunks(rank).filter(|&c| c + 1 < self.chunks.len()).count();
        let preceded = self.held_chunks(rank).filter(|&c| c > 0).count();
        vec![
            Flow { op: Op::Send, kind: Kind::Activations, bytes: messages(followed) },
            Flow { op: Op::Send, kind: Kind::Gradients, bytes: messages(preceded) },
        ]
    }

    /// Of a micro-batch.
    fn rows(&self) -> u64 {
        (self.config.train.micro_batch_size * self.config.train.seq_length) as u64
    }

    fn micro_batches(&self) -> u64 {
        let t = &self.config.train;
        (t.global_batch_size / (t.micro_batch_size * self.mesh.size(Axis::Data))) as u64
    }

    fn members(&self, rank: usize, kind: Kind) -> Vec<usize> {
        let copies = self.mesh.size(Axis::Tensor).div_ceil(self.config.model.num_key_value_heads);
        self.mesh.members(rank, kind, copies)
    }

    /// Whom `rank` sends to in its group of `kind`, and how many ranks that group has.
    fn next(&self, rank: usize, kind: Kind) -> (usize, u64) {
        let members = self.members(rank, kind);
        let at = members.iter().position(|&r| r == rank).expect("a rank is in its group");
        let step = if kind == Kind::Gradients { members.len() - 1 } else { 1 };
        (members[(at + step) % members.len()], members.len() as u64)
    }
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
    pub by_kind: BTreeMap<Kind, Crossing>,
    /// What each node sends over the network.
    pub by_node: BTreeMap<usize, u64>,
}

impl Links {
    pub fn total(&self) -> Crossing {
        sum(self.by_kind.values())
    }

    /// In groups of these kinds.
    pub fn of(&self, kinds: &[Kind]) -> Crossing {
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
pub fn crossing(step: &Step, nodes: &[usize]) -> Links {
    let mut links = Links::default();
    for rank in 0..step.mesh.ranks() {
        for flow in step.flows(rank) {
            let (next, n) = step.next(rank, flow.kind);
            let bytes = match flow.op {
                Op::AllGather | Op::ReduceScatter => flow.bytes * (n - 1) / n,
                Op::AllReduce => 2 * flow.bytes * (n - 1) / n,
                Op::Send => flow.bytes,
            };
            let crossing = links.by_kind.entry(flow.kind).or_default();
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
