//! How often each expert was chosen: a row for each layer, a column for each expert.

use super::number::{fixed, whole};
use super::{Block, Chart, Columns, Drawing, Section, Tone};
use crate::records::experts::ExpertsRecord;
use crate::run::Run;

/// `None` for a model without experts, or a run that is too short for a line of `experts.jsonl`.
pub fn load(run: &Run) -> Option<Section> {
    let last = run.experts.last()?;
    let (mean, steps) = (relative(last), format!("{} up to step {}", steps(last.steps), whole(last.step)));
    let busiest = |row: &Vec<f64>| row.iter().copied().fold(0.0, f64::max);
    let most = mean.iter().map(busiest).fold(0.0, f64::max);
    let layer = mean.iter().position(|row| busiest(row) == most).map_or(0, |at| last.layers[at]);
    let unused = last.load.iter().flatten().filter(|n| **n == 0).count();
    let text = format!(
        "In the {steps}, the most chosen expert had {} times the mean of its layer ({layer}); {} of {} experts had no \
         token.",
        fixed(most, 2),
        whole(unused as u64),
        whole(last.load.iter().map(Vec::len).sum::<usize>() as u64),
    );
    let chart = Chart {
        title: "Load of the experts".into(),
        caption: format!(
            "Choices of each expert over the mean of its layer, in the {steps}; a full row is twice the mean"
        ),
        keys: vec![(Tone::This, "choices".into())],
        drawing: Drawing::Columns(Columns {
            labels: last.layers.iter().map(|layer| format!("layer {layer}")).collect(),
            rows: mean.into_iter().map(|row| row.into_iter().map(|x| x / 2.0).collect()).collect(),
        }),
    };
    Some(Section::new("experts", "Experts", vec![Block::Text(text), Block::Charts(vec![chart])]))
}

fn steps(n: u64) -> String {
    if n == 1 { "step".into() } else { format!("{} steps", whole(n)) }
}

/// The choices of each expert, divided by the mean of its layer.
fn relative(record: &ExpertsRecord) -> Vec<Vec<f64>> {
    let row = |load: &Vec<u64>| {
        let mean = load.iter().sum::<u64>() as f64 / load.len() as f64;
        load.iter().map(|&n| if mean > 0.0 { n as f64 / mean } else { 0.0 }).collect()
    };
    record.load.iter().map(row).collect()
}
