//! Curves over the steps, with a band from minimum to maximum where a point stands for several steps.

use super::canvas::{Anchor, Area, IN_MEMORY, Ink, paint, style, units};
use crate::document::number::tick;
use crate::document::{Bucket, Curve, Scale};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::ops::Range;

/// Width and height in pixels, small enough that labels are readable on a phone.
const SIZE: (f64, f64) = (480.0, 260.0);
const LINE: f64 = 2.0;
/// Three of these charts stand side by side and shrink, so their text is drawn larger than that of wide charts.
const TEXT: f64 = 16.0;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

pub fn draw(curve: &Curve, name: &str) -> String {
    paint(SIZE, "curve", name, |canvas| match ranges(curve) {
        Some((x, y)) => chart(curve, &canvas.area, x, y),
        None => canvas.text(Ink::Label, Anchor::Middle, (SIZE.0 / 2.0, SIZE.1 / 2.0), "no data"),
    })
}

fn chart(curve: &Curve, area: &Area, x: Range<f64>, y: Range<f64>) {
    let (last, most) = (x.end, y.end);
    let mut chart = ChartBuilder::on(area)
        .margin(units(6.0))
        .margin_right(units(18.0))
        .x_label_area_size(units(28.0))
        .y_label_area_size(units(62.0))
        .build_cartesian_2d(x, y)
        .expect(IN_MEMORY);
    let (grid, label) = (Ink::Grid.colour(), style(Ink::Label, TEXT));
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(grid.stroke_width(units(1.0) as u32))
        .axis_style(grid.stroke_width(units(1.0) as u32))
        .set_all_tick_mark_size(units(4.0))
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|x| if x.fract() == 0.0 { tick(*x, last) } else { String::new() })
        .y_label_formatter(&|y| tick(*y, most))
        .label_style(label)
        .draw()
        .expect(IN_MEMORY);
    let several = curve.lines.len() > 1;
    for (tone, buckets) in &curve.lines {
        let ink = Ink::Tone(*tone).colour();
        // The bands of two lines would hide each other.
        if !several && buckets.iter().any(|b| b.least < b.most) {
            band(&mut chart, buckets, ink);
        }
        path(&mut chart, buckets, ink);
    }
    for (tone, marks) in &curve.marks {
        let dot = |&(step, value): &(u64, f64)| {
            Circle::new((step as f64, value), units(4.0), Ink::Tone(*tone).colour().filled())
        };
        chart.draw_series(marks.iter().map(dot)).expect(IN_MEMORY);
    }
}

fn band(chart: &mut Chart, buckets: &[Bucket], ink: RGBColor) {
    let there = buckets.iter().map(|b| (b.step, b.most));
    let back = buckets.iter().rev().map(|b| (b.step, b.least));
    let around: Vec<(f64, f64)> = there.chain(back).collect();
    chart.draw_series([Polygon::new(around, ink.mix(0.2))]).expect(IN_MEMORY);
}

fn path(chart: &mut Chart, buckets: &[Bucket], ink: RGBColor) {
    let points: Vec<(f64, f64)> = buckets.iter().map(|b| (b.step, b.mean)).collect();
    match points[..] {
        [only] => chart.draw_series([Circle::new(only, units(3.0), ink.filled())]).map(|_| ()),
        _ => chart.draw_series([PathElement::new(points, ink.stroke_width(units(LINE) as u32))]).map(|_| ()),
    }
    .expect(IN_MEMORY);
}

/// The ranges of both axes; `None` where there is nothing to show.
fn ranges(curve: &Curve) -> Option<(Range<f64>, Range<f64>)> {
    let lines = || curve.lines.iter().flat_map(|(_, buckets)| buckets);
    let marks = || curve.marks.iter().flat_map(|(_, marks)| marks);
    let steps = lines().map(|b| b.step).chain(marks().map(|&(step, _)| step as f64));
    let values = lines().flat_map(|b| [b.least, b.most]).chain(marks().map(|&(_, value)| value));
    let (first, last) = span(steps)?;
    let (least, most) = span(values)?;
    let (least, most) = match curve.scale {
        Scale::Zero => (least.min(0.0), most),
        Scale::Least => (least - 0.05 * (most - least), most),
    };
    let room = 0.05 * (most - least).max(0.02 * most.abs()).max(1e-12);
    Some((first..last.max(first + 1.0), least..most + room))
}

fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let both = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), x| (least.min(x), most.max(x)));
    (both.0 <= both.1).then_some(both)
}
