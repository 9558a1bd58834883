//! Two runs beside each other.

use super::charts::{curve, line};
use super::number::{digits, fixed};
use super::{Block, Chart, Curve, Scale, Section, Tone};
use crate::efficiency::{Compared, Efficiency};
use crate::metrics::StepRecord;
use crate::run::Run;

/// `None` where the figures were held against nothing.
pub fn section(e: &Efficiency, run: &Run, other: &Run) -> Option<Section> {
    let against = e.against.as_ref()?;
    let number = |x: Option<f64>| x.map_or("-".into(), |x| digits(x, 4));
    let row = |row: &Compared| {
        let ratio = row.ratio.map_or("-".into(), |ratio| fixed(ratio, 3));
        vec![row.figure.clone(), number(row.this), number(row.other), ratio]
    };
    let head = ["figure", "this run", "the other", "this / other"];
    let caption = format!("{} against {}", e.run, against.run);
    let table = Block::table(caption, &head, against.rows.iter().map(row).collect());
    let both = |title: &str, caption: &str, scale: Scale, of: fn(&StepRecord) -> f64| {
        let lines = vec![(Tone::Other, line(other, of)), (Tone::This, line(run, of))];
        let keys = vec![(Tone::This, e.run.clone()), (Tone::Other, against.run.clone())];
        Chart { keys, ..curve(title, caption, Curve { lines, marks: Vec::new(), scale }) }
    };
    let charts = Block::Charts(vec![
        both("Loss", "Nats a token", Scale::Least, |step| step.loss),
        both("Tokens/s a rank", "Of each step by itself", Scale::Zero, |step| step.tokens_per_s_per_rank),
    ]);
    let warnings = against.warnings.iter().map(|warning| Block::Note(warning.clone()));
    Some(Section::new("against", format!("Against {}", against.run), warnings.chain([table, charts]).collect()))
}
