//! Charts with a row per rank and time from left to right: stacked bars of phases, and the Gantt chart of a step.

use super::canvas::{Anchor, Canvas, Ink, paint};
use crate::document::{Bars, Columns, Gantt, Tone};
use crate::records::timeline::Stretch;

/// Width of the chart, and of the labels at its left, in pixels.
const WIDTH: f64 = 1120.0;
const LABELS: f64 = 128.0;
/// Width of a digit in pixels.
const DIGIT: f64 = 8.5;
/// Rows up to this number get more room.
const FEW: usize = 16;

/// Heights in pixels.
#[derive(Clone, Copy)]
struct Heights {
    /// From row to row.
    row: f64,
    /// A box in the row.
    work: f64,
    /// The strip for waits at its foot.
    wait: f64,
}

const BARS: [Heights; 2] = [Heights { row: 30.0, work: 22.0, wait: 0.0 }, Heights { row: 21.0, work: 16.0, wait: 0.0 }];
const GANTT: [Heights; 2] =
    [Heights { row: 34.0, work: 28.0, wait: 7.0 }, Heights { row: 21.0, work: 18.0, wait: 4.0 }];

/// Draws labelled rows over a time axis of `until` seconds; `row` draws the row with this index and top.
fn rows<'a>(
    name: &str,
    labels: impl ExactSizeIterator<Item = &'a str>,
    until: f64,
    [few, many]: [Heights; 2],
    row: impl Fn(&Canvas, usize, f64, Heights),
) -> String {
    let heights = if labels.len() <= FEW { few } else { many };
    let bottom = 6.0 + heights.row * labels.len() as f64;
    paint((WIDTH, bottom + 30.0), "wide", name, |canvas| {
        canvas.time_axis([LABELS, 2.0, WIDTH - 30.0, bottom], until);
        for (at, label) in labels.enumerate() {
            let top = 6.0 + heights.row * at as f64;
            canvas.text(Ink::Label, Anchor::Right, (LABELS - 10.0, top + heights.work / 2.0), label);
            row(&canvas, at, top, heights);
        }
    })
}

/// Pixels per second.
fn scale(until: f64) -> f64 {
    (WIDTH - 30.0 - LABELS) / until
}

/// A strip for each row, with a line at half of its height.
pub fn columns(columns: &Columns, name: &str) -> String {
    let heights = if columns.rows.len() <= FEW { BARS[0] } else { BARS[1] };
    let bottom = 6.0 + heights.row * columns.rows.len() as f64;
    paint((WIDTH, bottom), "wide", name, |canvas| {
        for (at, (label, row)) in columns.labels.iter().zip(&columns.rows).enumerate() {
            let foot = 6.0 + heights.row * at as f64 + heights.work;
            canvas.text(Ink::Label, Anchor::Right, (LABELS - 10.0, foot - heights.work / 2.0), label);
            let each = (WIDTH - 30.0 - LABELS) / row.len() as f64;
            for (column, share) in row.iter().enumerate() {
                let left = LABELS + each * column as f64;
                let top = foot - heights.work * share.min(1.0);
                canvas.rect(Ink::Tone(Tone::This), [left, top, left + 0.85 * each, foot]);
            }
            let middle = foot - heights.work / 2.0;
            canvas.rect(Ink::Grid, [LABELS, middle, WIDTH - 30.0, middle + 1.0]);
        }
    })
}

pub fn bars(bars: &Bars, name: &str) -> String {
    let longest = bars.rows.iter().map(|(_, seconds)| seconds.iter().sum()).fold(1e-9, f64::max);
    let labels = bars.rows.iter().map(|(label, _)| label.as_str());
    rows(name, labels, longest, BARS, |canvas, at, top, heights| {
        let mut left = LABELS;
        for (tone, seconds) in bars.tones.iter().zip(&bars.rows[at].1).filter(|(_, seconds)| **seconds > 0.0) {
            let end = left + scale(longest) * seconds;
            canvas.rect(Ink::Tone(*tone), [left, top, end, top + heights.work]);
            left = end;
        }
    })
}

pub fn gantt(gantt: &Gantt, name: &str) -> String {
    let labels = gantt.labels.iter().map(String::as_str);
    rows(name, labels, gantt.until, GANTT, |canvas, at, top, heights| {
        draw_row(canvas, &gantt.timeline.ranks[at].stretches, (top, heights), scale(gantt.until));
    })
}

/// Draws the work of a rank, and its waits over it. A wait inside of work is drawn at the foot of the box, so that the
/// number in the box stays readable.
fn draw_row(canvas: &Canvas, stretches: &[Stretch], (top, heights): (f64, Heights), scale: f64) {
    let (mut works, waits): (Vec<_>, Vec<_>) = stretches.iter().partition(|stretch| stretch.what.phase().is_some());
    works.sort_by(|a, b| a.start.total_cmp(&b.start));
    works.iter().for_each(|work| draw_box(canvas, work, [top, top + heights.work], scale));
    for wait in waits {
        let before = works.partition_point(|work| work.start <= wait.start);
        let inside = before > 0 && wait.start < works[before - 1].end;
        let free = heights.work - heights.wait;
        let from = top + if inside { free } else { free / 2.0 };
        draw_box(canvas, wait, [from, from + heights.wait], scale);
    }
}

fn draw_box(canvas: &Canvas, stretch: &Stretch, [top, bottom]: [f64; 2], scale: f64) {
    let (left, right) = (LABELS + scale * stretch.start, LABELS + scale * stretch.end);
    // A gap separates boxes of the same colour. A thin box gets a visible width.
    let end = if right - left > 4.0 { right - 1.0 } else { right.max(left + 0.5) };
    let tone = Tone::of_activity(&stretch.what);
    canvas.rect(Ink::Tone(tone), [left, top, end, bottom]);
    let Some(number) = stretch.what.micro_batch().map(|mb| mb.to_string()) else { return };
    if end - left > DIGIT * number.len() as f64 + 2.0 {
        let ink = if tone == Tone::Backward { Ink::OnBackward } else { Ink::OnForward };
        canvas.text(ink, Anchor::Middle, ((left + end) / 2.0, top + 0.42 * (bottom - top)), &number);
    }
}
