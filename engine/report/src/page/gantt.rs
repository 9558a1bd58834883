//! Ranks under each other, time from left to right: what each does when.

use super::canvas::{Anchor, Canvas, Ink, paint};
use crate::document::{Gantt, Tone};
use crate::efficiency::STAGES;
use crate::timeline::{Doing, Stretch};

/// Pixels: of the whole, and of the labels at the left.
const WIDTH: f64 = 1120.0;
const LABELS: f64 = 128.0;
/// Of a digit.
const DIGIT: f64 = 8.5;

/// Pixels: from row to row, of the box in it, and of the strip at its foot.
#[derive(Clone, Copy)]
struct Rows {
    each: f64,
    work: f64,
    wait: f64,
}

const FEW: Rows = Rows { each: 34.0, work: 28.0, wait: 7.0 };
/// More than a screen has room for otherwise.
const MANY: Rows = Rows { each: 21.0, work: 18.0, wait: 4.0 };

pub fn draw(gantt: &Gantt, name: &str) -> String {
    let rows = if gantt.labels.len() <= 16 { FEW } else { MANY };
    let bottom = 6.0 + rows.each * gantt.labels.len() as f64;
    paint((WIDTH, bottom + 30.0), "wide", name, |canvas| {
        let right = WIDTH - 30.0;
        canvas.time_axis([LABELS, 2.0, right, bottom], gantt.until);
        let scale = (right - LABELS) / gantt.until;
        for (at, row) in gantt.timeline.ranks.iter().enumerate() {
            let top = 6.0 + rows.each * at as f64;
            canvas.text(Ink::Label, Anchor::Right, (LABELS - 10.0, top + rows.work / 2.0), &gantt.labels[at]);
            draw_row(&canvas, &row.stretches, (top, rows), scale);
        }
    })
}

/// Works, and over them the waits that lie inside of them: at their foot, so that their numbers stay readable.
fn draw_row(canvas: &Canvas, stretches: &[Stretch], (top, rows): (f64, Rows), scale: f64) {
    let (waits, mut works): (Vec<_>, Vec<_>) = stretches.iter().partition(|stretch| tone(stretch).1.is_none());
    works.sort_by(|a, b| a.start.total_cmp(&b.start));
    works.iter().for_each(|work| draw_box(canvas, work, [top, top + rows.work], scale));
    for wait in waits {
        let before = works.partition_point(|work| work.start <= wait.start);
        let inside = before > 0 && wait.start < works[before - 1].end;
        let free = rows.work - rows.wait;
        let from = top + if inside { free } else { free / 2.0 };
        draw_box(canvas, wait, [from, from + rows.wait], scale);
    }
}

fn draw_box(canvas: &Canvas, stretch: &Stretch, [top, bottom]: [f64; 2], scale: f64) {
    let (left, right) = (LABELS + scale * stretch.start, LABELS + scale * stretch.end);
    // Boxes end a little early, so that two of a kind are told apart; a thin one would vanish.
    let end = if right - left > 4.0 { right - 1.0 } else { right.max(left + 0.5) };
    let (tone, on) = tone(stretch);
    canvas.rect(Ink::Tone(tone), [left, top, end, bottom]);
    if let (Some(on), Some(number)) = (on, number(stretch))
        && end - left > DIGIT * number.len() as f64 + 2.0
    {
        canvas.text(on, Anchor::Middle, ((left + end) / 2.0, top + 0.42 * (bottom - top)), &number);
    }
}

/// Its colour, and that of text on it; none on a wait.
fn tone(stretch: &Stretch) -> (Tone, Option<Ink>) {
    match &stretch.what {
        Doing::Forward { .. } => (Tone::Forward, Some(Ink::OnForward)),
        Doing::Backward { .. } => (Tone::Backward, Some(Ink::OnBackward)),
        Doing::Optimizer => (Tone::Optimizer, Some(Ink::OnForward)),
        Doing::Wait { group } if STAGES.iter().any(|kind| kind.name() == group) => (Tone::Stages, None),
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
