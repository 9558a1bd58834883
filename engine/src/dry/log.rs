//! The log of one rank, in program order: ops, collectives, and the waits for them.

use crate::backend::{Form, Op, Scope};
use crate::layout::mesh::GroupKind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// How much of a run is logged. Totals are always logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    Totals,
    /// Every collective and every wait for one: what the deadlock check of the tests reads.
    Calls,
    /// Every op and part of the step as well.
    Ops,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LogEntry {
    /// An op with its sizes; see [`crate::backend::Operands::sizes`].
    Op {
        op: Op,
        sizes: [usize; 3],
    },
    /// A collective, or one half of an exchange, starts.
    Start(Call),
    /// Compute waits for the rank's n-th `Start`.
    Wait(usize),
    /// The events up to the matching `Leave` belong to this part of the step.
    Enter(Scope),
    Leave,
}

/// A matrix product `[m, n, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Product {
    pub form: Form,
    pub sizes: [usize; 3],
}

/// One rank's side of a collective.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The group's number: all ranks create their groups in the same order.
    pub group: usize,
    pub kind: GroupKind,
    /// The ranks of the group, as ranks of the run.
    pub members: Arc<[usize]>,
    pub what: Operation,
    /// Bytes of the full matrix: the input of a reduce-scatter, the output of an all-gather. Of an all-to-all
    /// those that the rank exchanges with the others, the larger of both directions.
    pub bytes: usize,
    /// The send and the receive of one exchange have the same number and no order between them.
    pub post: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    AllReduce,
    AllGather,
    ReduceScatter,
    AllToAll,
    /// A send to this rank of the run.
    Send(usize),
    /// A receive from this rank of the run.
    Receive(usize),
}

impl Call {
    /// Bytes that the rank sends, with ring algorithms for collectives.
    pub fn sent(&self) -> usize {
        let others = self.members.len() - 1;
        match self.what {
            Operation::AllReduce => 2 * self.bytes * others / self.members.len(),
            Operation::AllGather | Operation::ReduceScatter => self.bytes * others / self.members.len(),
            Operation::Send(_) | Operation::AllToAll => self.bytes,
            Operation::Receive(_) => 0,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Operation::AllReduce => write!(f, "all-reduce"),
            Operation::AllGather => write!(f, "all-gather"),
            Operation::ReduceScatter => write!(f, "reduce-scatter"),
            Operation::AllToAll => write!(f, "all-to-all"),
            Operation::Send(to) => write!(f, "send to rank {to}"),
            Operation::Receive(from) => write!(f, "receive from rank {from}"),
        }
    }
}

/// Calls of a rank in groups of one kind, and bytes that it sent in them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    pub calls: u64,
    /// See [`Call::sent`].
    pub bytes: u64,
}

/// Counts of the ops and collectives of a rank.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Totals {
    /// How often each op ran.
    pub ops: BTreeMap<Op, u64>,
    pub traffic: BTreeMap<GroupKind, Traffic>,
}

impl Totals {
    /// The counts since `before`.
    pub fn since(&self, before: &Totals) -> Totals {
        let mut new = self.clone();
        new.ops.iter_mut().for_each(|(op, n)| *n -= before.ops.get(op).copied().unwrap_or_default());
        new.ops.retain(|_, n| *n > 0);
        for (kind, traffic) in &mut new.traffic {
            let was = before.traffic.get(kind).copied().unwrap_or_default();
            *traffic = Traffic { calls: traffic.calls - was.calls, bytes: traffic.bytes - was.bytes };
        }
        new.traffic.retain(|_, traffic| traffic.calls > 0);
        new
    }

    /// The sum of these counts and `times` times `each`.
    pub fn and(mut self, each: &Totals, times: u64) -> Totals {
        for (op, n) in &each.ops {
            *self.ops.entry(*op).or_default() += n * times;
        }
        for (kind, each) in &each.traffic {
            let all = self.traffic.entry(*kind).or_default();
            *all = Traffic { calls: all.calls + each.calls * times, bytes: all.bytes + each.bytes * times };
        }
        self
    }
}

/// The log of one rank.
#[derive(Debug, Clone)]
pub struct Log {
    pub rank: usize,
    keep: Keep,
    /// The events that [`Keep`] asks for.
    pub events: Vec<LogEntry>,
    pub totals: Totals,
    /// Every product shape that occurred, once.
    pub products: BTreeSet<Product>,
    starts: usize,
    posts: usize,
    groups: usize,
}

impl Log {
    pub fn new(rank: usize, keep: Keep) -> Self {
        let (events, totals, products) = Default::default();
        Log { rank, keep, events, totals, products, starts: 0, posts: 0, groups: 0 }
    }

    pub(super) fn op(&mut self, op: Op, sizes: [usize; 3]) {
        *self.totals.ops.entry(op).or_default() += 1;
        self.keep(Keep::Ops, || LogEntry::Op { op, sizes });
    }

    /// Logs the start of a call; returns the number for its wait.
    pub(super) fn start(&mut self, call: Call) -> usize {
        let traffic = self.totals.traffic.entry(call.kind).or_default();
        traffic.calls += 1;
        traffic.bytes += call.sent() as u64;
        self.keep(Keep::Calls, || LogEntry::Start(call));
        self.starts += 1;
        self.starts - 1
    }

    pub(super) fn enter(&mut self, part: Scope) {
        self.keep(Keep::Ops, || LogEntry::Enter(part));
    }

    pub(super) fn leave(&mut self) {
        self.keep(Keep::Ops, || LogEntry::Leave);
    }

    pub(super) fn wait(&mut self, start: usize) {
        self.keep(Keep::Calls, || LogEntry::Wait(start));
    }

    /// A number for the calls that are started together next.
    pub(super) fn post(&mut self) -> usize {
        self.posts += 1;
        self.posts
    }

    /// A number for a new group.
    pub(super) fn group(&mut self) -> usize {
        self.groups += 1;
        self.groups - 1
    }

    fn keep(&mut self, from: Keep, event: impl FnOnce() -> LogEntry) {
        if self.keep >= from {
            self.events.push(event());
        }
    }
}
