//! The time of a step, told by the parts that it is made of.

use super::replay::{Costs, Manner, Ran, replay};
use engine::backend::{Scope, Span};
use engine::dry::{Call, Log};
use engine::layout::mesh::GroupKind;
use engine::time::CommClass;
pub use engine::time::TimeCategory as Share;
use std::collections::BTreeMap;
use std::ops::Range;

/// A simulated step.
#[derive(Debug, Clone)]
pub struct Step {
    pub seconds: f64,
    /// Of the mean rank; together `seconds`.
    pub shares: BTreeMap<Share, f64>,
    /// By rank, as they were given.
    pub ranks: Vec<Ran>,
}

impl Step {
    /// Rank by rank, for a trace.
    pub fn tracks(&self) -> Vec<(usize, &[Span])> {
        self.ranks.iter().map(|ran| (ran.rank, &ran.spans[..])).collect()
    }

    /// How long it takes, and nothing else.
    pub fn seconds_of(logs: &[(&Log, Range<usize>)], costs: &dyn Costs) -> f64 {
        mean(&replay(logs, costs), |ran| ran.seconds)
    }

    /// A step that is longer than this one by so many times what `other` is.
    pub fn longer(&self, other: &Step, times: f64) -> Step {
        let more = |this: f64, other: f64| (this + (other - this) * times).max(0.0);
        let share = |(share, seconds): (&Share, &f64)| (*share, more(*seconds, other.shares[share]));
        let shares = self.shares.iter().map(share).collect();
        Step { seconds: more(self.seconds, other.seconds), shares, ranks: other.ranks.clone() }
    }

    pub fn simulate(logs: &[(&Log, Range<usize>)], costs: &dyn Costs) -> Step {
        let ranks = replay(logs, costs);
        let mut shares: BTreeMap<Share, f64> = Share::ALL.map(|share| (share, 0.0)).into();
        let mut add = |share, seconds: f64| *shares.entry(share).or_default() += seconds;
        for ran in &ranks {
            let each = 1.0 / ranks.len() as f64;
            ran.busy.iter().for_each(|(class, seconds)| add(Share::Computes(*class), each * seconds));
            add(Share::Software, each * ran.beside);
            add(Share::Tensor, each * waits(ran, is_tensor));
        }
        // Waits for others, when nothing but tensor-parallel calls takes time, when messages do, and when all does.
        let without = |free: fn(GroupKind) -> bool| mean(&replay(logs, &Free { costs, free }), others);
        let (none, messages) = (without(|kind| !is_tensor(kind)), without(is_data));
        let all = mean(&ranks, others);
        let bubble = none.min(all);
        let messages = (messages - bubble).clamp(0.0, all - bubble);
        shares.extend([(Share::Bubble, bubble), (Share::Messages, messages), (Share::Data, all - bubble - messages)]);
        Step { seconds: mean(&ranks, |ran| ran.seconds), shares, ranks }
    }
}

fn is_tensor(kind: GroupKind) -> bool {
    CommClass::of(kind) == CommClass::Tensor
}

fn is_data(kind: GroupKind) -> bool {
    matches!(CommClass::of(kind), CommClass::Data | CommClass::StepEnd)
}

fn waits(ran: &Ran, of: impl Fn(GroupKind) -> bool) -> f64 {
    ran.exposed.iter().filter(|(kind, _)| of(**kind)).map(|(_, seconds)| seconds).sum()
}

fn others(ran: &Ran) -> f64 {
    waits(ran, |kind| !is_tensor(kind))
}

fn mean(ranks: &[Ran], of: impl Fn(&Ran) -> f64) -> f64 {
    ranks.iter().map(of).sum::<f64>() / ranks.len() as f64
}

/// As if calls of some kinds took no time.
struct Free<'a> {
    costs: &'a dyn Costs,
    free: fn(GroupKind) -> bool,
}

impl Costs for Free<'_> {
    fn op(&self, name: &'static str, sizes: [usize; 3]) -> f64 {
        self.costs.op(name, sizes)
    }

    fn call(&self, rank: usize, call: &Call) -> f64 {
        if (self.free)(call.kind) { 0.0 } else { self.costs.call(rank, call) }
    }

    fn part(&self, part: Scope) -> f64 {
        self.costs.part(part)
    }

    fn manner(&self, kind: GroupKind) -> Manner {
        self.costs.manner(kind)
    }
}
