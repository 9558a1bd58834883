//! Rows of seconds one after another: where the time of each rank goes.

use super::canvas::{Anchor, Ink, paint};
use crate::document::Bars;

/// Pixels: of the whole, and of the labels at the left.
const WIDTH: f64 = 1120.0;
const LABELS: f64 = 128.0;
/// Pixels from row to row, and of the bar in it: of few, and of more than a screen has room for otherwise.
const FEW: [f64; 2] = [30.0, 22.0];
const MANY: [f64; 2] = [21.0, 16.0];

pub fn draw(bars: &Bars, name: &str) -> String {
    let longest = bars.rows.iter().map(|(_, seconds)| seconds.iter().sum()).fold(1e-9, f64::max);
    let [each, thick] = if bars.rows.len() <= 16 { FEW } else { MANY };
    let bottom = 6.0 + each * bars.rows.len() as f64;
    paint((WIDTH, bottom + 30.0), "wide", name, |canvas| {
        let right = WIDTH - 30.0;
        canvas.time_axis([LABELS, 2.0, right, bottom], longest);
        for (at, (label, seconds)) in bars.rows.iter().enumerate() {
            let (top, mut left) = (6.0 + each * at as f64, LABELS);
            canvas.text(Ink::Label, Anchor::Right, (LABELS - 10.0, top + thick / 2.0), label);
            for (tone, seconds) in bars.tones.iter().zip(seconds).filter(|(_, seconds)| **seconds > 0.0) {
                let end = left + (right - LABELS) * seconds / longest;
                canvas.rect(Ink::Tone(*tone), [left, top, end, top + thick]);
                left = end;
            }
        }
    })
}
