//! The time of a simulated step, split by category.

use super::replay::{CommMode, CostModel, RankTimeline, replay};
use engine::backend::{Op, Scope, Span};
use engine::dry::{Call, Log};
use engine::layout::mesh::GroupKind;
use engine::time::{CommClass, OpClass, TimeCategory};
use std::collections::BTreeMap;
use std::ops::Range;

/// A simulated step.
#[derive(Debug, Clone)]
pub struct Step {
    pub seconds: f64,
    /// Seconds of the mean rank; their sum is `seconds`.
    pub shares: BTreeMap<TimeCategory, f64>,
    /// Seconds of the mean rank's ops that they lost beside overlapped communication.
    pub slowed: f64,
    pub ranks: Vec<RankTimeline>,
}

impl Step {
    /// (rank, spans), for a trace.
    pub fn tracks(&self) -> Vec<(usize, &[Span])> {
        self.ranks.iter().map(|rank| (rank.rank, &rank.spans[..])).collect()
    }

    /// The seconds in which the mean rank computes, as if there were no communication and no bubble.
    pub fn ideal(&self) -> f64 {
        let busy: f64 = OpClass::ALL.iter().map(|class| self.shares[&TimeCategory::Computes(*class)]).sum();
        busy - self.slowed
    }

    /// The seconds alone, by a single replay.
    pub fn seconds_of(logs: &[(&Log, Range<usize>)], costs: &dyn CostModel) -> f64 {
        mean(&replay(logs, costs), |rank| rank.seconds)
    }

    /// This step plus `times` times its difference to `other`.
    pub fn extrapolated(&self, other: &Step, times: f64) -> Step {
        let more = |this: f64, other: f64| (this + (other - this) * times).max(0.0);
        let share = |(share, seconds): (&TimeCategory, &f64)| (*share, more(*seconds, other.shares[share]));
        let shares = self.shares.iter().map(share).collect();
        let slowed = more(self.slowed, other.slowed);
        Step { seconds: more(self.seconds, other.seconds), shares, slowed, ranks: other.ranks.clone() }
    }

    pub fn simulate(logs: &[(&Log, Range<usize>)], costs: &dyn CostModel) -> Step {
        let ranks = replay(logs, costs);
        let mut shares: BTreeMap<TimeCategory, f64> = TimeCategory::ALL.map(|share| (share, 0.0)).into();
        let mut add = |share, seconds: f64| *shares.entry(share).or_default() += seconds;
        for rank in &ranks {
            let each = 1.0 / ranks.len() as f64;
            rank.busy.iter().for_each(|(class, seconds)| add(TimeCategory::Computes(*class), each * seconds));
            add(TimeCategory::Software, each * rank.host);
            add(TimeCategory::Tensor, each * waits(rank, |kind| CommClass::of(kind) == CommClass::Tensor));
            add(TimeCategory::Experts, each * waits(rank, |kind| CommClass::of(kind) == CommClass::Experts));
        }
        // Waits when only calls inside layers take time, when messages do as well, and when all calls do: the
        // differences are what messages and data-parallel calls add to the bubble.
        let without = |free: fn(GroupKind) -> bool| mean(&replay(logs, &Free { costs, free }), others);
        let (none, messages) = (without(|kind| !is_in_layer(kind)), without(is_data));
        let all = mean(&ranks, others);
        let bubble = none.min(all);
        let messages = (messages - bubble).clamp(0.0, all - bubble);
        shares.extend([
            (TimeCategory::Bubble, bubble),
            (TimeCategory::Messages, messages),
            (TimeCategory::Data, all - bubble - messages),
        ]);
        let (seconds, slowed) = (mean(&ranks, |rank| rank.seconds), mean(&ranks, |rank| rank.slowed));
        Step { seconds, shares, slowed, ranks }
    }
}

/// Whether the calls of this kind are made by layers, so that their waits are counted one by one.
fn is_in_layer(kind: GroupKind) -> bool {
    matches!(CommClass::of(kind), CommClass::Tensor | CommClass::Experts)
}

fn is_data(kind: GroupKind) -> bool {
    matches!(CommClass::of(kind), CommClass::Data | CommClass::StepEnd)
}

fn waits(rank: &RankTimeline, of: impl Fn(GroupKind) -> bool) -> f64 {
    rank.exposed.iter().filter(|(kind, _)| of(**kind)).map(|(_, seconds)| seconds).sum()
}

fn others(rank: &RankTimeline) -> f64 {
    waits(rank, |kind| !is_in_layer(kind))
}

fn mean(ranks: &[RankTimeline], of: impl Fn(&RankTimeline) -> f64) -> f64 {
    ranks.iter().map(of).sum::<f64>() / ranks.len() as f64
}

/// A cost model in which calls of some kinds take no time.
struct Free<'a> {
    costs: &'a dyn CostModel,
    free: fn(GroupKind) -> bool,
}

impl CostModel for Free<'_> {
    fn op(&self, op: Op, sizes: [usize; 3]) -> f64 {
        self.costs.op(op, sizes)
    }

    fn call(&self, rank: usize, call: &Call) -> f64 {
        if (self.free)(call.kind) { 0.0 } else { self.costs.call(rank, call) }
    }

    fn host(&self, part: Scope) -> f64 {
        self.costs.host(part)
    }

    fn mode(&self, kind: GroupKind) -> CommMode {
        self.costs.mode(kind)
    }
}
