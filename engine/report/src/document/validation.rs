//! Validation by set: a curve for each, so that a language that is forgotten while another is learned is seen.

use super::charts::{Bucket, curve, line_of};
use super::number::{fixed, whole};
use super::{Block, Chart, Curve, Scale, Section, Tone};
use crate::efficiency::{Efficiency, SetChange};
use crate::records::metrics::SetRecord;
use crate::run::Run;

/// Tones of the sets of a chart; a run with more sets has more charts.
const TONES: [Tone; 6] = [Tone::SetA, Tone::SetB, Tone::SetC, Tone::SetD, Tone::SetE, Tone::SetF];

/// `None` where no step was validated by set.
pub fn by_set(e: &Efficiency, run: &Run) -> Option<Section> {
    let sets: Vec<&String> = e.done.valid.keys().collect();
    let charts: Vec<Chart> = sets.chunks(TONES.len()).flat_map(|sets| charts(sets, run)).collect();
    let rows = e.done.valid.iter().map(|(name, change)| row(name, change)).collect();
    let head = ["set", "first step", "loss", "bits/byte", "last step", "loss", "bits/byte", "change of the loss"];
    let table =
        Block::table("Loss on each validation set, in nats per token, at its first and last validation", &head, rows);
    (!sets.is_empty()).then(|| Section::new("validation", "Validation by set", vec![Block::Charts(charts), table]))
}

/// The losses of these sets, and their bits per byte where they are known.
fn charts(sets: &[&String], run: &Run) -> Vec<Chart> {
    let lines = |of: &dyn Fn(&SetRecord) -> Option<f64>| -> Vec<(Tone, &String, Vec<Bucket>)> {
        let points = |name: &String| {
            let records = run.steps.records.iter();
            line_of(records.filter_map(|record| Some((record.step, of(record.valid.get(name)?)?))))
        };
        let lines = sets.iter().zip(TONES).map(|(name, tone)| (tone, *name, points(name)));
        lines.filter(|(_, _, points)| !points.is_empty()).collect()
    };
    let chart = |title: &str, caption: &str, lines: Vec<(Tone, &String, Vec<Bucket>)>| {
        let keys = lines.iter().map(|(tone, name, _)| (*tone, name.to_string())).collect();
        let lines = lines.into_iter().map(|(tone, _, points)| (tone, points)).collect();
        Chart { keys, ..curve(title, caption, Curve { lines, marks: Vec::new(), scale: Scale::Least }) }
    };
    let losses = chart("Validation loss", "Nats per token, by set", lines(&|set| Some(set.loss)));
    let bits = lines(&|set| set.bits_per_byte);
    let bits = (!bits.is_empty()).then(|| chart("Bits per byte", "Of the text of each set", bits));
    [losses].into_iter().chain(bits).collect()
}

fn row(name: &str, SetChange { first, last }: &SetChange) -> Vec<String> {
    let bits = |set: &SetRecord| set.bits_per_byte.map_or("unknown".to_string(), |bits| fixed(bits, 4));
    let at = |(step, set): &(u64, SetRecord)| [whole(*step), fixed(set.loss, 4), bits(set)];
    let change = format!("{:+.4}", last.1.loss - first.1.loss);
    [vec![name.to_string()], at(first).into(), at(last).into(), vec![change]].concat()
}
