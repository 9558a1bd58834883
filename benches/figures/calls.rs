//! Measures calls between ranks, from when all of them have arrived.

use super::{kinds, median};
use engine::backend::{Backend, Collectives, Elem, Expected, Tensor};
use engine::cpu::{Cpu, Float};
use engine::dry::{Call, Log};
use engine::layout::mesh::GroupKind;
use engine::layout::rank_layout::RankLayout;
use engine::mpi::Comm;
use plan::profile::{CallTime, call_name};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// The number of measurements of each call.
const TURNS: usize = 21;
const KINDS: [GroupKind; 8] = [
    GroupKind::Tensor,
    GroupKind::KvHeads,
    GroupKind::Data,
    GroupKind::Optimizer,
    GroupKind::Activations,
    GroupKind::Gradients,
    GroupKind::Tied,
    GroupKind::World,
];

/// A class of equal calls: index of the group's kind in [`KINDS`], name of the call, bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kindred(usize, String, usize);

impl Kindred {
    pub fn of(call: &Call) -> Kindred {
        let kind = KINDS.iter().position(|kind| *kind == call.kind).expect("all kinds are there");
        Kindred(kind, call_name(call.what).into(), call.bytes)
    }
}

/// Measures the calls of all ranks. Every rank makes all of them, in one order.
pub fn time<A: Float>(b: &Cpu<A>, rank_layout: &RankLayout, log: &Log, comm: &Comm) -> Vec<CallTime> {
    let mine: Vec<(usize, String, usize)> = kinds(log).into_iter().map(|Kindred(k, call, n)| (k, call, n)).collect();
    let all = comm.all_gather_bytes(&serde_json::to_vec(&mine).expect("text and numbers"));
    let read =
        |bytes: &Vec<u8>| serde_json::from_slice::<Vec<(usize, String, usize)>>(bytes).expect("a rank wrote it above");
    let all: BTreeSet<(usize, String, usize)> = all.iter().flat_map(read).collect();
    let mut groups: BTreeMap<usize, _> = BTreeMap::new();
    let mut times = Vec::new();
    for (kind, call, bytes) in all {
        let members = rank_layout.members(KINDS[kind]);
        let group = groups.entry(kind).or_insert_with(|| b.group(KINDS[kind], &members));
        let turns = (0..TURNS).map(|_| {
            comm.barrier();
            once(b, group, KINDS[kind], &call, bytes)
        });
        let seconds = median(turns.collect());
        let group = KINDS[kind].name().into();
        times.push(CallTime { group, call, ranks: members.len(), bytes, seconds });
    }
    times
}

fn once<A: Float>(b: &Cpu<A>, group: &<Cpu<A> as Backend>::Group, kind: GroupKind, call: &str, bytes: usize) -> f64 {
    if size::<A>(group) == 1 {
        return 0.0;
    }
    // Sums of gradients (unless the configuration says bf16), losses and norms are f32; all else is activations and
    // weights.
    match (kind, call) {
        (_, "message") => message(b, group, bytes / size_of::<A>()),
        (GroupKind::Tensor | GroupKind::Optimizer, _) => collective::<A, A>(b, group, call, bytes),
        _ => collective::<A, f32>(b, group, call, bytes),
    }
}

fn size<A: Float>(group: &<Cpu<A> as Backend>::Group) -> usize {
    Collectives::<Cpu<A>>::size(group)
}

fn filled<A: Float, T: Elem>(b: &Cpu<A>, rows: usize) -> Tensor<Cpu<A>, T> {
    b.upload(&vec![bytemuck::Zeroable::zeroed(); rows], rows, 1)
}

fn collective<A: Float, T: Elem>(b: &Cpu<A>, group: &<Cpu<A> as Backend>::Group, call: &str, bytes: usize) -> f64 {
    // Rounded up to equal shares of all ranks.
    let share = (bytes / size_of::<T>()).div_ceil(size::<A>(group));
    let ranks = if call == "all-gather" { 1 } else { size::<A>(group) };
    let x = filled::<A, T>(b, share * ranks);
    let start = Instant::now();
    drop(match call {
        "all-gather" => group.all_gather(b, x),
        "reduce-scatter" => group.reduce_scatter(b, x),
        _ => group.all_reduce(b, x),
    });
    start.elapsed().as_secs_f64()
}

/// Each rank sends a message to the next and receives one from the rank before.
fn message<A: Float>(b: &Cpu<A>, group: &<Cpu<A> as Backend>::Group, len: usize) -> f64 {
    let (at, size) = (Collectives::<Cpu<A>>::rank(group), size::<A>(group));
    let (next, before) = ((at + 1) % size, (at + size - 1) % size);
    let x: Tensor<_, A> = filled(b, len);
    let start = Instant::now();
    let both = group.exchange(b, Some((x, next)), Some(Expected { rows: len, cols: 1, from: before }));
    drop((both.received.map(|pending| pending.wait()), both.sent.map(|pending| pending.wait())));
    start.elapsed().as_secs_f64()
}
