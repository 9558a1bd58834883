//! The efficiency of a run: numbers computed from its files by pure functions of [`Run`]. `document` puts them into
//! words.

mod against;
mod planned;
mod setup;
mod speed;
mod time;

pub use against::{Against, Compared};
pub use planned::{MemoryUse, Planned, PlannedShare};
pub use setup::Setup;
pub use speed::{ByFormula, Peak, Speed, per_token, steady};
pub use time::{Bubble, PhaseTime, Slow, Time, WaitTime, mean};

use super::records::metrics::SetRecord;
use super::run::Run;
use engine::config::Named;
use engine::error::counted;
use engine::model::flops::Formula;
use serde::Serialize;
use std::collections::BTreeMap;

/// The fields of `efficiency.json`, in this order.
#[derive(Debug, Clone, Serialize)]
pub struct Efficiency {
    /// Name of its directory.
    pub run: String,
    pub setup: Setup,
    pub done: Done,
    pub speed: Speed,
    pub peak: Peak,
    pub formulas: Vec<ByFormula>,
    /// `None` where no step was sampled.
    pub time: Option<Time>,
    pub memory: Option<Vec<MemoryUse>>,
    pub plan: Option<Planned>,
    /// The comparison with another run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    /// Lines and files that were skipped or ignored.
    pub notes: Vec<String>,
}

/// Progress of the run.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    pub step: u64,
    pub of_steps: u64,
    pub tokens: u64,
    /// Training loss of the last step.
    pub loss: f64,
    /// The step and the value of the newest validation loss.
    pub valid_loss: Option<(u64, f64)>,
    /// The first and the last validation of each set, by its name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub valid: BTreeMap<String, SetChange>,
}

/// The step and the loss of two validations of a set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetChange {
    pub first: (u64, SetRecord),
    pub last: (u64, SetRecord),
}

impl Efficiency {
    /// `peak`: TFLOPS of one rank's device by the command line, if given there.
    pub fn of(run: &Run, peak: Option<f64>) -> Efficiency {
        let setup = Setup::of(run);
        let speed = Speed::of(run);
        let peak = Peak::of(run, peak);
        let time = Time::of(run, &speed);
        let formulas = ByFormula::all(run, &speed, &peak);
        Efficiency {
            run: run.name.clone(),
            done: Done::of(run),
            memory: MemoryUse::all(run),
            plan: Planned::of(run, &speed, time.as_ref()),
            against: None,
            notes: notes(run, &speed).into_iter().chain(above_peak(&formulas, &peak)).collect(),
            setup,
            speed,
            peak,
            formulas,
            time,
        }
    }

    /// Adds the comparison with another run.
    pub fn against(self, run: &Run, other: &Efficiency, other_run: &Run) -> Efficiency {
        let against = Against::of((&self, run), (other, other_run));
        Efficiency { against: Some(against), ..self }
    }

    /// The values by the formula of this name.
    pub fn formula(&self, name: &str) -> &ByFormula {
        self.formulas.iter().find(|by| by.formula == name).expect("every formula is listed")
    }
}

impl Done {
    fn of(run: &Run) -> Done {
        let (train, last) = (&run.config.train, run.steps.records.last().expect("a run has a step"));
        let validated = run.steps.records.iter().rev().find_map(|step| Some((step.step, step.valid_loss?)));
        Done {
            step: last.step,
            of_steps: train.steps,
            tokens: last.consumed_samples.saturating_mul(train.seq_length as u64),
            loss: last.loss,
            valid_loss: validated,
            valid: changes(run),
        }
    }
}

fn changes(run: &Run) -> BTreeMap<String, SetChange> {
    let mut changes: BTreeMap<String, SetChange> = BTreeMap::new();
    let sets = run.steps.records.iter().flat_map(|step| step.valid.iter().map(|(name, set)| (name, (step.step, set))));
    for (name, (step, set)) in sets {
        let now = || (step, set.clone());
        let change = changes.entry(name.clone()).or_insert_with(|| SetChange { first: now(), last: now() });
        change.last = now();
    }
    changes
}

fn notes(run: &Run, speed: &Speed) -> Vec<String> {
    let skipped = |file: &str, lines: &[usize]| {
        let first = lines.first()?;
        let why = "it is no complete record, as a run that is killed may leave one";
        Some(match lines.len() {
            1 => format!("{file}: line {first} was skipped; {why}"),
            many => format!("{file}: line {first} and {} more were skipped; {why}", many - 1),
        })
    };
    let metrics = skipped("metrics.jsonl", &run.steps.skipped);
    let samples = skipped("ranks.jsonl", &run.samples.skipped);
    let others = (speed.other_settings > 0).then(|| {
        let steps = counted(speed.other_settings, "step");
        let are = if speed.other_settings == 1 { "is" } else { "are" };
        format!("{steps} with other settings than {} {are} excluded from all speeds", run.settings)
    });
    [metrics, samples, others].into_iter().flatten().chain(run.ignored().map(String::from)).collect()
}

/// A warning where the achieved TFLOPS exceed the peak, which is wrong then.
fn above_peak(formulas: &[ByFormula], peak: &Peak) -> Option<String> {
    let by = formulas.iter().find(|by| by.formula == Formula::Model.name() && by.mfu.is_some_and(|mfu| mfu > 1.0))?;
    let (achieved, peak, source) = (by.tflops_per_rank, peak.tflops?, &peak.source);
    Some(format!(
        "the achieved {achieved:.1} TFLOPS (formula `model`) exceed the peak of {peak:.1} TFLOPS, {source}: \
         this cannot be the peak of this device"
    ))
}

#[cfg(test)]
pub mod tests;
