//! How efficient a run was: figures of what it left, each with what it is a figure of. Pure functions of what was read;
//! how they look is `document`'s.

mod against;
mod buckets;
mod memory;
mod plan;
mod setup;
mod speed;
mod time;

pub use against::{Against, Compared};
pub use buckets::{Bucket, buckets, can_be_shown};
pub use memory::MemoryUse;
pub use plan::{Planned, PlannedShare, differs};
pub use setup::Setup;
pub use speed::{ByFormula, Peak, Speed, per_token, steady};
pub use time::{Bubble, PhaseTime, STAGES, Slow, Time, WaitTime, mean};

use super::run::Run;
use engine::config::Named;
use engine::error::counted;
use engine::model::flops::Formula;
use serde::Serialize;

/// What `efficiency.json` holds, in this order.
#[derive(Debug, Clone, Serialize)]
pub struct Efficiency {
    /// The name of its directory.
    pub run: String,
    pub setup: Setup,
    pub done: Done,
    pub speed: Speed,
    pub peak: Peak,
    pub formulas: Vec<ByFormula>,
    /// `None` without samples of the ranks' time.
    pub time: Option<Time>,
    pub memory: Option<Vec<MemoryUse>>,
    pub plan: Option<Planned>,
    /// Beside another run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    /// What was skipped or left out.
    pub notes: Vec<String>,
}

/// How far it came.
#[derive(Debug, Clone, Serialize)]
pub struct Done {
    pub step: u64,
    pub of_steps: u64,
    pub tokens: u64,
    /// Of the last step.
    pub loss: f64,
    /// The newest, and its step.
    pub valid_loss: Option<(u64, f64)>,
}

impl Efficiency {
    /// `peak`: TFLOPS of a rank's device, where the user says so.
    pub fn of(run: &Run, peak: Option<f64>) -> Efficiency {
        let setup = Setup::of(run);
        let speed = Speed::of(run);
        let peak = Peak::of(run, peak);
        let time = Time::of(run, &speed);
        let formulas = ByFormula::all(run, &speed, &peak);
        Efficiency {
            run: run.name.clone(),
            done: Done::of(run),
            memory: memory::of(run),
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

    /// Beside the figures of another run.
    pub fn beside(self, run: &Run, other: &Efficiency, other_run: &Run) -> Efficiency {
        let against = Against::of((&self, run), (other, other_run));
        Efficiency { against: Some(against), ..self }
    }

    /// By a formula's name.
    pub fn formula(&self, name: &str) -> &ByFormula {
        self.formulas.iter().find(|by| by.formula == name).expect("all formulas are there")
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
        }
    }
}

fn notes(run: &Run, speed: &Speed) -> Vec<String> {
    let skipped = |file: &str, lines: &[usize]| {
        let first = lines.first()?;
        let what = "left out here, not a whole and sound record; a run that is killed leaves half a line";
        Some(match lines.len() {
            1 => format!("{file}, line {first}: {what}"),
            many => format!("{file}, line {first} and {} more: {what}", many - 1),
        })
    };
    let metrics = skipped("metrics.jsonl", &run.steps.skipped);
    let samples = skipped("ranks.jsonl", &run.samples.skipped);
    let others = (speed.other_settings > 0).then(|| {
        let steps = counted(speed.other_settings, "step");
        let (were, them) = if speed.other_settings == 1 { ("was", "it") } else { ("were", "them") };
        format!("{steps} {were} done at other settings than {}; no speed is told of {them}", run.settings)
    });
    let left_out = run.left_out().map(String::from);
    [metrics, samples, others].into_iter().flatten().chain(left_out).collect()
}

/// No device does more than its peak.
fn above_peak(formulas: &[ByFormula], peak: &Peak) -> Option<String> {
    let by = formulas.iter().find(|by| by.formula == Formula::Model.name() && by.mfu.is_some_and(|mfu| mfu > 1.0))?;
    let (reached, peak, source) = (by.tflops_per_rank, peak.tflops?, &peak.source);
    Some(format!(
        "{reached:.1} TFLOPS by `model` are more than the peak of {peak:.1}, {source}: that is not this device's peak"
    ))
}

#[cfg(test)]
pub mod tests;
