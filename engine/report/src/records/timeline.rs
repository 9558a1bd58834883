//! `timeline.json`: the activities of each rank during one step, for a Gantt chart. A measured step and a simulated one
//! have the same kind of timeline.

use super::settings::layout;
use engine::backend::{Label, Scope, Span, Track};
use engine::error::Result;
use engine::layout::mesh::{GroupKind, Mesh};
use engine::time::{CommClass, Phase};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;

/// Waits shorter than this share of a step are left out: no chart shows them.
const VISIBLE: f64 = 1e-3;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The first step is 1; 0 in a simulation.
    pub step: u64,
    /// Tensor, pipeline and data parallelism.
    pub layout: [usize; 3],
    /// From the start of the first rank to the end of the last.
    pub seconds: f64,
    pub ranks: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub rank: usize,
    /// Sorted by their ends. A wait may lie inside of another activity.
    pub stretches: Vec<Stretch>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stretch {
    #[serde(flatten)]
    pub what: Activity,
    /// Seconds, as is `end`.
    pub start: f64,
    pub end: f64,
}

/// An activity of a rank; layers and single ops are not shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Activity {
    Forward {
        chunk: usize,
        micro_batch: usize,
    },
    Backward {
        chunk: usize,
        micro_batch: usize,
    },
    Optimizer,
    /// A wait for communication of a kind of group.
    Wait {
        group: String,
    },
}

impl Row {
    /// `spans`: the trace of a step of `rank`.
    pub fn of(rank: usize, spans: &[Span]) -> Row {
        let length = spans.iter().map(|span| span.end).fold(0.0, f64::max);
        let seen = |stretch: &Stretch| stretch.what.phase().is_some() || stretch.length() > VISIBLE * length;
        Row { rank, stretches: spans.iter().filter_map(stretch).filter(seen).collect() }
    }

    fn moved(self, by: f64) -> Row {
        let moved = |s: Stretch| Stretch { start: microseconds(s.start + by), end: microseconds(s.end + by), ..s };
        Row { stretches: self.stretches.into_iter().map(moved).collect(), ..self }
    }
}

/// Rounds to whole microseconds: clocks have no more digits.
pub(super) fn microseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

impl Stretch {
    pub fn length(&self) -> f64 {
        self.end - self.start
    }
}

impl Activity {
    /// `None` for a span that a timeline does not show.
    fn of(span: &Span) -> Option<Activity> {
        match (&span.label, span.track) {
            (&Label::Scope(Scope::Forward { chunk, mb }), _) => Some(Activity::Forward { chunk, micro_batch: mb }),
            (&Label::Scope(Scope::Backward { chunk, mb }), _) => Some(Activity::Backward { chunk, micro_batch: mb }),
            (Label::Scope(Scope::Optimizer), _) => Some(Activity::Optimizer),
            (Label::Wait, Track::Wait(kind)) => Some(Activity::Wait { group: kind.name().into() }),
            _ => None,
        }
    }

    /// `None` for a wait, which may be in any phase.
    pub fn phase(&self) -> Option<Phase> {
        match self {
            Activity::Forward { .. } => Some(Phase::Forward),
            Activity::Backward { .. } => Some(Phase::Backward),
            Activity::Optimizer => Some(Phase::Optimizer),
            Activity::Wait { .. } => None,
        }
    }

    /// `None` for all but waits, and for waits for a group that this version lacks.
    pub fn waits_for(&self) -> Option<CommClass> {
        match self {
            Activity::Wait { group } => CommClass::of_group(group),
            _ => None,
        }
    }

    pub fn micro_batch(&self) -> Option<usize> {
        match *self {
            Activity::Forward { micro_batch, .. } | Activity::Backward { micro_batch, .. } => Some(micro_batch),
            Activity::Optimizer | Activity::Wait { .. } => None,
        }
    }
}

fn stretch(span: &Span) -> Option<Stretch> {
    Some(Stretch { what: Activity::of(span)?, start: span.start, end: span.end })
}

/// The end of a rank's last wait for all others, by its clock. It is the same time on all ranks, so it aligns clocks.
pub fn met(spans: &[Span]) -> Option<f64> {
    spans.iter().rev().find(|span| span.track == Track::Wait(GroupKind::World)).map(|span| span.end)
}

impl Timeline {
    /// Aligns the clocks of `rows` by the times of [`met`]. A row without such a time keeps its clock.
    pub fn of(step: u64, layout: [usize; 3], rows: Vec<(Row, Option<f64>)>) -> Timeline {
        let rows: Vec<Row> = rows.into_iter().map(|(row, met)| row.moved(-met.unwrap_or(0.0))).collect();
        let all = || rows.iter().flat_map(|row| &row.stretches);
        let first = all().map(|stretch| stretch.start).fold(f64::INFINITY, f64::min).min(f64::MAX);
        let last = all().map(|stretch| stretch.end).fold(first, f64::max);
        let ranks = rows.into_iter().map(|row| row.moved(-first)).collect();
        Timeline { step, layout, seconds: microseconds(last - first), ranks }
    }

    /// Replaces the timeline at `path` at once, so that a reader never finds half of one.
    pub fn write(&self, path: &Path) -> Result<()> {
        super::replace(path, &serde_json::to_vec(self).expect("text and numbers"))
    }

    /// Why it shows no step of the run on `mesh`; `None` where it does. `others`: steps that ran with other settings.
    pub fn unfit(&self, mesh: &Mesh, others: &BTreeSet<u64>) -> Option<String> {
        if self.layout != mesh.layout() {
            return Some(format!("its layout is {}, the run's is {}", layout(self.layout), layout(mesh.layout())));
        }
        others.contains(&self.step).then(|| format!("its step {} ran with other settings", self.step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(track: Track, label: Label, start: f64, end: f64) -> Span {
        Span { track, label, start, end }
    }

    #[test]
    fn clocks_are_aligned_where_all_ranks_met() {
        let spans = |zero: f64| {
            vec![
                span(Track::Wait(GroupKind::Gradients), Label::Wait, zero, zero + 0.5),
                span(Track::Wait(GroupKind::Tensor), Label::Wait, zero + 1.0, zero + 1.0001),
                span(Track::Parts, Label::Scope(Scope::Backward { chunk: 0, mb: 2 }), zero + 0.5, zero + 2.0),
                span(Track::Wait(GroupKind::World), Label::Wait, zero + 2.0, zero + 2.5),
                span(Track::Parts, Label::Scope(Scope::Optimizer), zero + 2.0, zero + 3.0),
                span(Track::Compute, Label::Op("rope".into()), zero, zero + 9.0),
            ]
        };
        let rows = [(0, 100.0), (1, 7.0)].map(|(rank, zero)| (Row::of(rank, &spans(zero)), met(&spans(zero))));
        let timeline = Timeline::of(4, [1, 1, 2], rows.into());
        assert_eq!(timeline.seconds, 3.0);
        assert_eq!(timeline.ranks[0].stretches, timeline.ranks[1].stretches);
        let [wait, backward, world, optimizer] = &timeline.ranks[1].stretches[..] else { panic!("{timeline:?}") };
        assert_eq!((wait.start, wait.end, &wait.what), (0.0, 0.5, &Activity::Wait { group: "gradients".into() }));
        assert_eq!((backward.length(), &backward.what), (1.5, &Activity::Backward { chunk: 0, micro_batch: 2 }));
        assert_eq!((world.end, optimizer.end), (2.5, 3.0));
        let text = serde_json::to_string(&timeline).unwrap();
        assert!(text.contains(r#"{"what":"backward","chunk":0,"micro_batch":2,"start":0.5,"end":2.0}"#), "{text}");
        assert_eq!(serde_json::from_str::<Timeline>(&text).unwrap(), timeline);
    }
}
