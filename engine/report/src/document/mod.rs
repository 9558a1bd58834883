//! The report as sections of text, tables and charts, which `markdown` and `page` write down: what is told, and in which words.
//! Text between backticks is code.

mod charts;
mod compared;
mod head;
pub mod number;
mod ranks;
mod speed;

use super::efficiency::{Bucket, Efficiency};
use super::run::Run;
use super::timeline::Timeline;

pub struct Document {
    pub title: String,
    /// Under the title, in one sentence.
    pub lead: String,
    pub headlines: Vec<Headline>,
    /// What was skipped or left out.
    pub notes: Vec<String>,
    pub sections: Vec<Section>,
}

/// One of the few figures that matter most.
pub struct Headline {
    pub label: String,
    pub value: String,
    /// What it is a figure of.
    pub of: String,
}

pub struct Section {
    /// For links.
    pub id: &'static str,
    pub title: String,
    pub blocks: Vec<Block>,
}

pub enum Block {
    Text(String),
    /// What should not be overlooked.
    Note(String),
    Facts(Vec<(&'static str, String)>),
    Table(Table),
    /// Beside each other.
    Charts(Vec<Chart>),
}

pub struct Table {
    pub caption: String,
    /// Of the columns; the first names the rows.
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

pub struct Chart {
    pub title: String,
    pub caption: String,
    /// What the colours mean.
    pub keys: Vec<(Tone, String)>,
    pub drawing: Drawing,
}

pub enum Drawing {
    Curve(Curve),
    Gantt(Gantt),
    Bars(Bars),
}

/// Lines over steps.
pub struct Curve {
    pub lines: Vec<(Tone, Vec<Bucket>)>,
    /// Points of their own.
    pub marks: Vec<(Tone, Vec<(u64, f64)>)>,
    pub scale: Scale,
}

/// Where the vertical axis begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Zero,
    Least,
}

/// What each rank does when.
pub struct Gantt {
    pub timeline: Timeline,
    /// Of each row.
    pub labels: Vec<String>,
    /// Seconds to the right end.
    pub until: f64,
}

/// Rows of seconds one after another.
pub struct Bars {
    pub tones: Vec<Tone>,
    /// Label, and seconds by tone.
    pub rows: Vec<(String, Vec<f64>)>,
}

/// What a colour stands for, the same in all charts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Forward,
    Backward,
    Optimizer,
    /// Waits for other stages.
    Stages,
    /// Waits for gradients, or any other group.
    Groups,
    Data,
    /// A run's line.
    This,
    /// A second line, or another run's.
    Other,
}

impl Tone {
    pub const ALL: [(Tone, &'static str); 8] = [
        (Tone::Forward, "forward"),
        (Tone::Backward, "backward"),
        (Tone::Optimizer, "optimizer"),
        (Tone::Stages, "stages"),
        (Tone::Groups, "groups"),
        (Tone::Data, "data"),
        (Tone::This, "this"),
        (Tone::Other, "other"),
    ];

    /// As the style sheet calls it.
    pub fn name(self) -> &'static str {
        Tone::ALL[self as usize].1
    }
}

impl Document {
    /// `other`: the run that `efficiency` was held against.
    pub fn of(efficiency: &Efficiency, run: &Run, other: Option<&Run>) -> Document {
        let mut sections = vec![
            head::setup(efficiency),
            charts::over_steps(efficiency, run),
            charts::pipeline(efficiency, run),
            ranks::time(efficiency),
            ranks::waits(efficiency),
            ranks::stragglers(efficiency),
            ranks::memory(efficiency, run),
            speed::plan(efficiency, run),
            speed::formulas(efficiency),
        ];
        sections.extend(other.and_then(|other| compared::section(efficiency, run, other)));
        Document {
            title: format!("Efficiency of {}", efficiency.run),
            lead: head::lead(efficiency),
            headlines: head::headlines(efficiency),
            notes: efficiency.notes.clone(),
            sections,
        }
    }
}

impl Section {
    fn new(id: &'static str, title: impl Into<String>, blocks: Vec<Block>) -> Section {
        Section { id, title: title.into(), blocks }
    }
}

impl Block {
    fn table(caption: impl Into<String>, head: &[&str], rows: Vec<Vec<String>>) -> Block {
        let head = head.iter().map(|cell| cell.to_string()).collect();
        Block::Table(Table { caption: caption.into(), head, rows })
    }
}

/// What would bring samples of where the ranks' time goes.
fn no_samples() -> Block {
    Block::Text(
        "No sampled step of this layout in `ranks.jsonl`: a run of `report.interval` steps or more has one (0 turns them off)."
            .into(),
    )
}
