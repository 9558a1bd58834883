//! Ranks beside each other over one step: what a Gantt chart shows. A run that was measured and one that was simulated
//! have the same kind of timeline.

use engine::backend::{Label, Scope, Span, Track};
use engine::layout::mesh::GroupKind;
use serde::{Deserialize, Serialize};

/// Waits shorter than this share of a step are left out: nobody would see them.
const SEEN: f64 = 1e-3;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// The first is 1.
    pub step: u64,
    /// Tensor, pipeline, data.
    pub layout: [usize; 3],
    /// From the beginning of the first rank to the end of the last.
    pub seconds: f64,
    pub ranks: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub rank: usize,
    /// In the order of their ends. A wait may lie inside of another stretch.
    pub stretches: Vec<Stretch>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stretch {
    #[serde(flatten)]
    pub what: Doing,
    /// Seconds.
    pub start: f64,
    pub end: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Doing {
    Forward {
        chunk: usize,
        micro_batch: usize,
    },
    Backward {
        chunk: usize,
        micro_batch: usize,
    },
    Optimizer,
    /// For the ranks of a kind of group.
    Wait {
        group: String,
    },
}

impl Row {
    /// Of the spans of a rank's step.
    pub fn of(rank: usize, spans: &[Span]) -> Row {
        let length = spans.iter().map(|span| span.end).fold(0.0, f64::max);
        let seen = |stretch: &Stretch| !matches!(stretch.what, Doing::Wait { .. }) || stretch.length() > SEEN * length;
        Row { rank, stretches: spans.iter().filter_map(stretch).filter(seen).collect() }
    }

    fn moved(self, by: f64) -> Row {
        let moved = |s: Stretch| Stretch { start: micro(s.start + by), end: micro(s.end + by), ..s };
        Row { stretches: self.stretches.into_iter().map(moved).collect(), ..self }
    }
}

/// Whole microseconds: more digits than a clock has would only fill the disk.
pub(super) fn micro(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

impl Stretch {
    pub fn length(&self) -> f64 {
        self.end - self.start
    }
}

fn stretch(span: &Span) -> Option<Stretch> {
    let what = match (&span.label, span.track) {
        (&Label::Scope(Scope::Forward { chunk, mb }), _) => Doing::Forward { chunk, micro_batch: mb },
        (&Label::Scope(Scope::Backward { chunk, mb }), _) => Doing::Backward { chunk, micro_batch: mb },
        (Label::Scope(Scope::Optimizer), _) => Doing::Optimizer,
        (Label::Wait, Track::Wait(kind)) => Doing::Wait { group: kind.name().into() },
        _ => return None,
    };
    Some(Stretch { what, start: span.start, end: span.end })
}

/// When a rank had waited for all others, which is when they had, too: ranks' clocks are compared by it.
pub fn met(spans: &[Span]) -> Option<f64> {
    spans.iter().rev().find(|span| span.track == Track::Wait(GroupKind::World)).map(|span| span.end)
}

impl Timeline {
    /// Rows with the times at which they met, by their own clocks; rows that never did keep their clock.
    pub fn of(step: u64, layout: [usize; 3], rows: Vec<(Row, Option<f64>)>) -> Timeline {
        let rows: Vec<Row> = rows.into_iter().map(|(row, met)| row.moved(-met.unwrap_or(0.0))).collect();
        let all = || rows.iter().flat_map(|row| &row.stretches);
        let first = all().map(|stretch| stretch.start).fold(f64::INFINITY, f64::min).min(f64::MAX);
        let last = all().map(|stretch| stretch.end).fold(first, f64::max);
        let ranks = rows.into_iter().map(|row| row.moved(-first)).collect();
        Timeline { step, layout, seconds: micro(last - first), ranks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(track: Track, label: Label, start: f64, end: f64) -> Span {
        Span { track, label, start, end }
    }

    #[test]
    fn clocks_are_compared_where_all_ranks_met() {
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
        assert_eq!((wait.start, wait.end, &wait.what), (0.0, 0.5, &Doing::Wait { group: "gradients".into() }));
        assert_eq!((backward.length(), &backward.what), (1.5, &Doing::Backward { chunk: 0, micro_batch: 2 }));
        assert_eq!((world.end, optimizer.end), (2.5, 3.0));
        let text = serde_json::to_string(&timeline).unwrap();
        assert!(text.contains(r#"{"what":"backward","chunk":0,"micro_batch":2,"start":0.5,"end":2.0}"#), "{text}");
        assert_eq!(serde_json::from_str::<Timeline>(&text).unwrap(), timeline);
    }
}
