//! The content of the report: sections of text, tables and charts, which `markdown` and `page` lay out. Text between
//! backticks is code.

mod charts;
mod compare;
mod experts;
mod head;
pub mod number;
mod ranks;
mod tasks;
mod validation;

use super::efficiency::Efficiency;
use super::records::timeline::{Activity, Timeline};
use super::run::Run;
pub use charts::Bucket;
use engine::time::{CommClass, Phase};

pub struct Document {
    pub title: String,
    /// One sentence under the title, without its full stop.
    pub lead: String,
    pub headlines: Vec<Headline>,
    /// Lines and files that were skipped or ignored.
    pub notes: Vec<String>,
    pub sections: Vec<Section>,
}

/// One of the few numbers that matter most.
pub struct Headline {
    pub label: String,
    pub value: String,
    /// How it was computed, or a related number.
    pub detail: String,
}

pub struct Section {
    /// The target of links.
    pub id: &'static str,
    pub title: String,
    pub blocks: Vec<Block>,
}

pub enum Block {
    Text(String),
    /// Text that stands out.
    Note(String),
    Facts(Vec<(&'static str, String)>),
    Table(Table),
    /// Side by side.
    Charts(Vec<Chart>),
}

pub struct Table {
    pub caption: String,
    /// Column names. The first column names the rows, the others hold numbers.
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

pub struct Chart {
    pub title: String,
    pub caption: String,
    /// The legend.
    pub keys: Vec<(Tone, String)>,
    pub drawing: Drawing,
}

pub enum Drawing {
    Curve(Curve),
    Gantt(Gantt),
    Bars(Bars),
    Columns(Columns),
}

/// Lines over the steps.
pub struct Curve {
    pub lines: Vec<(Tone, Vec<Bucket>)>,
    /// Single points.
    pub marks: Vec<(Tone, Vec<(u64, f64)>)>,
    pub scale: Scale,
}

/// The start of the vertical axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Zero,
    /// A little below the least value.
    Least,
}

/// The activities of each rank over time.
pub struct Gantt {
    pub timeline: Timeline,
    /// Names of the rows.
    pub labels: Vec<String>,
    /// Seconds at the right end.
    pub until: f64,
}

/// Stacked horizontal bars of seconds.
pub struct Bars {
    pub tones: Vec<Tone>,
    /// The label of each row, and its seconds by tone.
    pub rows: Vec<(String, Vec<f64>)>,
}

/// Rows of upright columns.
pub struct Columns {
    /// Names of the rows.
    pub labels: Vec<String>,
    /// The heights of the columns of each row, as shares of the row; what is above 1 is cut.
    pub rows: Vec<Vec<f64>>,
}

/// The meaning of a colour, the same in all charts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Forward,
    Backward,
    Optimizer,
    /// Waits for other stages.
    Stages,
    /// Waits for the reduction of gradients, or for any other group.
    Groups,
    Data,
    /// The line of this run.
    This,
    /// A second line, or the line of the other run.
    Other,
    /// Validation sets.
    SetA,
    SetB,
    SetC,
    SetD,
    SetE,
    SetF,
}

impl Tone {
    pub const ALL: [(Tone, &'static str); 14] = [
        (Tone::Forward, "forward"),
        (Tone::Backward, "backward"),
        (Tone::Optimizer, "optimizer"),
        (Tone::Stages, "stages"),
        (Tone::Groups, "groups"),
        (Tone::Data, "data"),
        (Tone::This, "this"),
        (Tone::Other, "other"),
        (Tone::SetA, "set-a"),
        (Tone::SetB, "set-b"),
        (Tone::SetC, "set-c"),
        (Tone::SetD, "set-d"),
        (Tone::SetE, "set-e"),
        (Tone::SetF, "set-f"),
    ];

    /// Its name in the style sheet.
    pub fn name(self) -> &'static str {
        Tone::ALL[self as usize].1
    }

    pub fn of_phase(phase: Phase) -> Tone {
        match phase {
            Phase::Forward => Tone::Forward,
            Phase::Backward => Tone::Backward,
            Phase::Pipeline => Tone::Stages,
            Phase::Reduce => Tone::Groups,
            Phase::Optimizer => Tone::Optimizer,
            Phase::Data | Phase::Validation | Phase::Report | Phase::Checkpoint => Tone::Data,
        }
    }

    pub fn of_activity(activity: &Activity) -> Tone {
        match (activity.phase(), activity.waits_for()) {
            (Some(phase), _) => Tone::of_phase(phase),
            (None, Some(CommClass::Pipeline)) => Tone::Stages,
            (None, _) => Tone::Groups,
        }
    }
}

impl Document {
    /// `other`: the run that `efficiency` is compared with.
    pub fn of(efficiency: &Efficiency, run: &Run, other: Option<&Run>) -> Document {
        let mut sections = vec![head::setup(efficiency), charts::over_steps(efficiency, run)];
        sections.extend(validation::by_set(efficiency, run));
        sections.extend(tasks::scores(run));
        sections.extend(experts::load(run));
        sections.extend([
            charts::pipeline(efficiency, run),
            ranks::time(efficiency),
            ranks::waits(efficiency),
            ranks::stragglers(efficiency),
            ranks::memory(efficiency, run),
            compare::plan(efficiency, run),
            compare::formulas(efficiency),
        ]);
        sections.extend(other.and_then(|other| compare::runs(efficiency, run, other)));
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

/// A text about how to get samples of the ranks' time.
fn no_samples() -> Block {
    Block::Text(
        "`ranks.jsonl` has no sample of this layout. A run samples every `report.interval` steps; 0 turns samples off."
            .into(),
    )
}
