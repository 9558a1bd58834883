//! What one rank did, in the order of its program: ops, collectives, and the waits for them.

use crate::backend::Scope;
use crate::layout::mesh::GroupKind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// How much of a run is kept. Totals are always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    Totals,
    /// Every collective and every wait for one: what the deadlock check of the tests reads.
    Calls,
    /// Every op, too.
    Ops,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LogEntry {
    /// An op of the backend's contract: `[m, n, k]` of a product, else rows and columns of what it goes
    /// over, and 1.
    Op {
        name: &'static str,
        sizes: [usize; 3],
    },
    /// A collective, or one half of an exchange, is under way.
    Start(Call),
    /// Compute waits for the rank's n-th `Start`.
    Wait(usize),
    /// What follows belongs to a part of the step, until it is left.
    Enter(Scope),
    Leave,
}

/// A product of matrices: its op, and `[m, n, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Product {
    pub name: &'static str,
    pub sizes: [usize; 3],
}

/// One rank's side of a collective.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Of the groups that the ranks made together, this one's number.
    pub group: usize,
    pub kind: GroupKind,
    /// All ranks of the group, as ranks of the run.
    pub members: Arc<[usize]>,
    pub what: What,
    /// Of the whole matrix: what a reduce-scatter reads, what an all-gather writes.
    pub bytes: usize,
    /// Halves of one exchange have the same number: nothing orders them.
    pub post: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    AllReduce,
    AllGather,
    ReduceScatter,
    /// To this rank of the run.
    Send(usize),
    /// From this rank of the run.
    Receive(usize),
}

impl Call {
    /// Bytes that the rank sends, with collectives done in rings.
    pub fn sent(&self) -> usize {
        let others = self.members.len() - 1;
        match self.what {
            What::AllReduce => 2 * self.bytes * others / self.members.len(),
            What::AllGather | What::ReduceScatter => self.bytes * others / self.members.len(),
            What::Send(_) => self.bytes,
            What::Receive(_) => 0,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            What::AllReduce => write!(f, "all-reduce"),
            What::AllGather => write!(f, "all-gather"),
            What::ReduceScatter => write!(f, "reduce-scatter"),
            What::Send(to) => write!(f, "send to rank {to}"),
            What::Receive(from) => write!(f, "receive from rank {from}"),
        }
    }
}

/// How often a rank used groups of one kind, and what it sent in them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    pub calls: u64,
    /// As [`Call::sent`].
    pub bytes: u64,
}

/// What was done, counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Totals {
    /// How often each op was done.
    pub ops: BTreeMap<&'static str, u64>,
    pub traffic: BTreeMap<GroupKind, Traffic>,
}

impl Totals {
    /// What came on top of `before`.
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

    /// This, and `each` so many times more.
    pub fn and(mut self, each: &Totals, times: u64) -> Totals {
        for (op, n) in &each.ops {
            *self.ops.entry(op).or_default() += n * times;
        }
        for (kind, each) in &each.traffic {
            let all = self.traffic.entry(*kind).or_default();
            *all = Traffic { calls: all.calls + each.calls * times, bytes: all.bytes + each.bytes * times };
        }
        self
    }
}

/// The record of one rank.
#[derive(Debug, Clone)]
pub struct Log {
    pub rank: usize,
    keep: Keep,
    /// As far as they are kept.
    pub events: Vec<LogEntry>,
    pub totals: Totals,
    /// The products that were there, each once.
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

    pub(super) fn op(&mut self, name: &'static str, sizes: [usize; 3]) {
        *self.totals.ops.entry(name).or_default() += 1;
        self.keep(Keep::Ops, || LogEntry::Op { name, sizes });
    }

    /// The number that its wait will name.
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

    /// A number for what is started next, together.
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
