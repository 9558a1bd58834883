//! `ranks.jsonl`: every few steps, where the time of every rank went. One JSON object a sample, only ever appended to.

use super::lines::{LAST_STEP, Lines, Log, Record};
use super::timeline::micro;
use engine::backend::{Label, Scope, Span, Track};
use engine::error::Result;
use engine::time::Phase;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A sampled step of one rank. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct OfRank {
    /// Of the step, from its first op to its last.
    pub seconds: f64,
    /// In which it computed, or could have: its data, its micro-batches and its optimizer, without the waits in them.
    pub busy: f64,
    /// Of each phase, as in `metrics.jsonl`.
    pub phases: BTreeMap<String, f64>,
    /// In which compute waited, by kind of group.
    pub waits: BTreeMap<String, f64>,
}

/// A sampled step: of every figure one of each rank.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The first is 1.
    pub step: u64,
    /// Tensor, pipeline, data: a run may go on at another layout.
    pub layout: [usize; 3],
    pub seconds: Vec<f64>,
    pub busy: Vec<f64>,
    pub phases: BTreeMap<String, Vec<f64>>,
    pub waits: BTreeMap<String, Vec<f64>>,
}

impl OfRank {
    /// From what was remembered of a step.
    pub fn of(seconds: f64, phases: BTreeMap<String, f64>, spans: &[Span]) -> OfRank {
        let mut waits = BTreeMap::new();
        for span in spans {
            if let Track::Wait(kind) = span.track {
                *waits.entry(kind.name().to_string()).or_default() += span.end - span.start;
            }
        }
        // A rank whose data come late keeps the others waiting as one that computes slowly does.
        let data = phases.get(Phase::Data.key()).copied().unwrap_or_default();
        OfRank { seconds, busy: data + busy(spans), phases, waits }
    }
}

/// Seconds of what computes, without the waits inside.
fn busy(spans: &[Span]) -> f64 {
    let works = |span: &&Span| match span.label {
        Label::Scope(Scope::Unit(_)) => false,
        Label::Scope(_) => true,
        Label::Op(_) | Label::Wait => false,
    };
    let mut works: Vec<(f64, f64)> = spans.iter().filter(works).map(|span| (span.start, span.end)).collect();
    works.sort_by(|a, b| a.0.total_cmp(&b.0));
    let inside = |span: &&Span| {
        let at = works.partition_point(|&(start, _)| start <= span.start);
        matches!(span.track, Track::Wait(_)) && at > 0 && span.start < works[at - 1].1
    };
    let waits: f64 = spans.iter().filter(inside).map(|span| span.end - span.start).sum();
    works.iter().map(|(start, end)| end - start).sum::<f64>() - waits
}

impl Sample {
    /// Of all ranks, in their order.
    pub fn of(step: u64, layout: [usize; 3], ranks: &[OfRank]) -> Sample {
        let each = |figure: &dyn Fn(&OfRank) -> f64| ranks.iter().map(|rank| micro(figure(rank))).collect::<Vec<_>>();
        let named = |of: fn(&OfRank) -> &BTreeMap<String, f64>| {
            let names: BTreeSet<String> = ranks.iter().flat_map(|rank| of(rank).keys().cloned()).collect();
            let row = |name: String| (name.clone(), each(&|rank| of(rank).get(&name).copied().unwrap_or_default()));
            names.into_iter().map(row).collect()
        };
        Sample {
            step,
            layout,
            seconds: each(&|rank| rank.seconds),
            busy: each(&|rank| rank.busy),
            phases: named(|rank| &rank.phases),
            waits: named(|rank| &rank.waits),
        }
    }
}

impl Record for Sample {
    fn step(&self) -> u64 {
        self.step
    }

    /// Shares are those of these seconds.
    fn is_sound(&self) -> bool {
        self.step <= LAST_STEP && self.seconds.iter().all(|&seconds| seconds > 0.0)
    }
}

/// An open `ranks.jsonl`. Rank 0 has one.
pub type SampleLog = Log<Sample>;

/// The samples of a run in the order of their steps, and what could not be read.
pub fn read(path: &Path) -> Result<Lines<Sample>> {
    super::lines::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::layout::mesh::GroupKind;

    #[test]
    fn waits_inside_of_work_are_not_work() {
        let part = |part, start, end| Span { track: Track::Parts, label: Label::Scope(part), start, end };
        let wait = |kind, start, end| Span { track: Track::Wait(kind), label: Label::Wait, start, end };
        let spans = [
            wait(GroupKind::Activations, 0.0, 1.0),
            wait(GroupKind::Tensor, 1.5, 2.0),
            part(Scope::Forward { chunk: 0, mb: 0 }, 1.0, 3.0),
            wait(GroupKind::Data, 3.0, 3.25),
            wait(GroupKind::Tensor, 4.0, 4.5),
            part(Scope::Backward { chunk: 0, mb: 0 }, 4.0, 6.0),
        ];
        let rank = OfRank::of(6.0, BTreeMap::from([("data_s".into(), 0.5)]), &spans);
        assert_eq!(rank.busy, 0.5 + 3.0);
        let waits = rank.waits.iter().map(|(name, s)| format!("{name} {s}")).collect::<Vec<_>>();
        assert_eq!(waits, ["activations 1", "data 0.25", "tensor 1"]);
        let sample = Sample::of(10, [1, 1, 2], &[rank, OfRank::default()]);
        assert_eq!((&sample.busy, &sample.waits["tensor"]), (&vec![3.5, 0.0], &vec![1.0, 0.0]));
        assert_eq!(sample.phases["data_s"], [0.5, 0.0]);
    }
}
