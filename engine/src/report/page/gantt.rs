//! Ranks under each other, time from left to right: what each does when.

use super::canvas::{Anchor, Canvas, Ink, paint};
use crate::report::document::{Gantt, Tone};
use crate::report::efficiency::STAGES;
use crate::report::timeline::{Doing, Stretch};

/// Pixels: of the whole, of the labels at the left, of a row and of the box in it.
const WIDTH: f64 = 1120.0;
const LABELS: f64 = 128.0;
const ROW: f64 = 30.0;
const BOX: f64 = 24.0;
/// Of a digit.
const DIGIT: f64 = 8.5;

pub fn draw(gantt: &Gantt, name: &str) -> String {
    let bottom = 6.0 + ROW * gantt.labels.len() as f64;
    paint((WIDTH, bottom + 30.0), "wide", name, |canvas| {
        let right = WIDTH - 30.0;
        canvas.time_axis([LABELS, 2.0, right, bottom], gantt.until);
        let scale = (right - LABELS) / gantt.until;
        for (at, row) in gantt.timeline.ranks.iter().enumerate() {
            let top = 6.0 + ROW * at as f64;
            canvas.text(Ink::Label, Anchor::Right, (LABELS - 10.0, top + BOX / 2.0), &gantt.labels[at]);
            // Waits lie inside of other work: they are drawn over it.
            let (waits, works): (Vec<_>, Vec<_>) = row.stretches.iter().partition(|s| tone(s).1.is_none());
            works.iter().chain(&waits).for_each(|stretch| draw_box(&canvas, stretch, top, scale));
        }
    })
}

fn draw_box(canvas: &Canvas, stretch: &Stretch, top: f64, scale: f64) {
    let (left, right) = (LABELS + scale * stretch.start, LABELS + scale * stretch.end);
    // Boxes end a little early, so that two of a kind are told apart; a thin one would vanish.
    let end = if right - left > 4.0 { right - 1.0 } else { right.max(left + 0.5) };
    let (tone, on) = tone(stretch);
    let inset = if on.is_none() { 6.0 } else { 0.0 };
    canvas.rect(Ink::Tone(tone), [left, top + inset, end, top + BOX - inset]);
    if let (Some(on), Some(number)) = (on, number(stretch))
        && end - left > DIGIT * number.len() as f64 + 2.0
    {
        canvas.text(on, Anchor::Middle, ((left + end) / 2.0, top + BOX / 2.0), &number);
    }
}

/// Its colour, and that of text on it; none on a wait.
fn tone(stretch: &Stretch) -> (Tone, Option<Ink>) {
    match &stretch.what {
        Doing::Forward { .. } => (Tone::Forward, Some(Ink::OnForward)),
        Doing::Backward { .. } => (Tone::Backward, Some(Ink::OnBackward)),
        Doing::Optimizer => (Tone::Optimizer, Some(Ink::OnForward)),
        Doing::Wait { group } if STAGES.contains(&group.as_str()) => (Tone::Stages, None),
        Doing::Wait { .. } => (Tone::Groups, None),
    }
}

/// Of the micro-batch.
fn number(stretch: &Stretch) -> Option<String> {
    match stretch.what {
        Doing::Forward { micro_batch, .. } | Doing::Backward { micro_batch, .. } => Some(micro_batch.to_string()),
        Doing::Optimizer | Doing::Wait { .. } => None,
    }
}
