//! `ranks.jsonl`: the time of every rank in sampled steps, one JSON object per sample.

use super::jsonl::{LAST_STEP, Lines, Log, Record};
use super::timeline::microseconds;
use engine::backend::{Label, Span, Track};
use engine::error::Result;
use engine::time::Phase;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A sampled step on one rank, in seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RankTime {
    /// From the first op of the step to its last.
    pub seconds: f64,
    /// Data, micro-batches and optimizer, without the waits for other ranks in them.
    pub busy: f64,
    /// By [`Phase::key`].
    pub phases: BTreeMap<String, f64>,
    /// Exposed communication, by kind of group.
    pub waits: BTreeMap<String, f64>,
}

/// A sampled step: every number of [`RankTime`] for each rank.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The first step is 1.
    pub step: u64,
    /// Tensor, pipeline and data parallelism, which may change when a run resumes.
    pub layout: [usize; 3],
    pub seconds: Vec<f64>,
    pub busy: Vec<f64>,
    pub phases: BTreeMap<String, Vec<f64>>,
    pub waits: BTreeMap<String, Vec<f64>>,
}

impl RankTime {
    /// `spans`: the trace of the step.
    pub fn of(seconds: f64, phases: BTreeMap<String, f64>, spans: &[Span]) -> RankTime {
        let mut waits = BTreeMap::new();
        for span in spans {
            if let Track::Wait(kind) = span.track {
                *waits.entry(kind.name().to_string()).or_default() += span.end - span.start;
            }
        }
        // Late data make a straggler of a rank just as slow compute does.
        let data = phases.get(Phase::Data.key()).copied().unwrap_or_default();
        RankTime { seconds, busy: data + busy(spans), phases, waits }
    }
}

/// Seconds in micro-batches and the optimizer, without the waits inside them.
fn busy(spans: &[Span]) -> f64 {
    // Layers lie inside of the micro-batches.
    let works = |span: &&Span| matches!(span.label, Label::Scope(part) if part.phase().is_some());
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
    /// `ranks` in their order.
    pub fn of(step: u64, layout: [usize; 3], ranks: &[RankTime]) -> Sample {
        let each = |of: &dyn Fn(&RankTime) -> f64| ranks.iter().map(|rank| microseconds(of(rank))).collect::<Vec<_>>();
        let named = |of: fn(&RankTime) -> &BTreeMap<String, f64>| {
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

    /// A sample is sound if its seconds, by which shares of a step are divided, are positive.
    fn is_sound(&self) -> bool {
        self.step <= LAST_STEP && self.seconds.iter().all(|&seconds| seconds > 0.0)
    }
}

/// `ranks.jsonl` open for appending, on rank 0.
pub type SampleLog = Log<Sample>;

pub fn read(path: &Path) -> Result<Lines<Sample>> {
    super::jsonl::read(path)
}

/// The newest sample.
pub fn read_last(path: &Path) -> Result<Option<Sample>> {
    Ok(super::jsonl::read_last(path)?.pop())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::backend::Scope;
    use engine::layout::mesh::GroupKind;

    #[test]
    fn waits_inside_of_a_micro_batch_are_not_busy_time() {
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
        let rank = RankTime::of(6.0, BTreeMap::from([("data_s".into(), 0.5)]), &spans);
        assert_eq!(rank.busy, 0.5 + 3.0);
        let waits = rank.waits.iter().map(|(name, s)| format!("{name} {s}")).collect::<Vec<_>>();
        assert_eq!(waits, ["activations 1", "data 0.25", "tensor 1"]);
        let sample = Sample::of(10, [1, 1, 2], &[rank, RankTime::default()]);
        assert_eq!((&sample.busy, &sample.waits["tensor"]), (&vec![3.5, 0.0], &vec![1.0, 0.0]));
        assert_eq!(sample.phases["data_s"], [0.5, 0.0]);
    }
}
