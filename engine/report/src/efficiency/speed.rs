//! How fast it was: the median step, and what that is by each formula.

use super::super::run::Run;
use crate::metrics::StepRecord;
use crate::peak;
use engine::config::Named;
use engine::model::flops::Formula;
use serde::Serialize;

/// Steps at the beginning that are not like the others: buffers are made, connections too.
const WARM_UP: usize = 2;

/// Of the median of some steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// First and last of these steps, and how many there are.
    pub first_step: u64,
    pub last_step: u64,
    pub steps: usize,
    /// Steps at other settings, which are left out.
    pub other_settings: usize,
    pub step_s: f64,
    pub tokens_per_s_per_rank: f64,
    pub tokens_per_s: f64,
}

/// Of a rank's device, in TFLOPS.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peak {
    pub tflops: Option<f64>,
    /// Who says so, or what would.
    pub source: String,
}

/// The median step by one formula.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByFormula {
    pub formula: &'static str,
    pub flops_per_token: f64,
    pub tflops_per_rank: f64,
    /// A share, where the peak is known.
    pub mfu: Option<f64>,
}

/// The steps that speed is told of: those at the run's settings but for the first two, where there are more.
pub fn steady(run: &Run) -> Vec<&StepRecord> {
    let steps: Vec<&StepRecord> = run.steps_as_now().collect();
    let skip = if steps.len() > WARM_UP { WARM_UP } else { 0 };
    steps[skip..].to_vec()
}

/// Of two in the middle their mean; 0 of nothing.
pub fn median(of: impl IntoIterator<Item = f64>) -> f64 {
    let mut of: Vec<f64> = of.into_iter().filter(|x| x.is_finite()).collect();
    of.sort_by(f64::total_cmp);
    match of.len() {
        0 => 0.0,
        n => (of[(n - 1) / 2] + of[n / 2]) / 2.0,
    }
}

impl Speed {
    pub fn of(run: &Run) -> Speed {
        let (train, ranks) = (&run.config.train, run.mesh.ranks());
        let steps = steady(run);
        let step_s = median(steps.iter().map(|step| step.step_time_s));
        let tokens_per_s = (train.global_batch_size * train.seq_length) as f64 / step_s;
        Speed {
            first_step: steps.first().map_or(0, |step| step.step),
            last_step: steps.last().map_or(0, |step| step.step),
            steps: steps.len(),
            other_settings: run.steps.records.len() - run.steps_as_now().count(),
            step_s,
            tokens_per_s_per_rank: tokens_per_s / ranks as f64,
            tokens_per_s,
        }
    }
}

impl Peak {
    /// `said`: on the command line, which goes before all else.
    pub fn of(run: &Run, said: Option<f64>) -> Peak {
        let device = run.machine.there().map(|machine| machine.device.as_str());
        let known = device.and_then(|device| Some((peak::bf16_tflops(device)?, device)));
        let (tflops, source) = match (said, run.config.report.peak_tflops, known) {
            (Some(said), ..) => (Some(said), "as `--peak-tflops` says".into()),
            (None, Some(own), _) => (Some(own), "as `report.peak_tflops` of the configuration says".into()),
            (None, None, Some((known, device))) => (Some(known), format!("dense bf16 of {device} by its data sheet")),
            (None, None, None) => {
                let unknown = run.machine.left_out().unwrap_or("no `machine.json`");
                let whose = device.map_or(format!("the device ({unknown})"), |device| format!("\"{device}\""));
                let remedy = "give `report.peak_tflops` in the configuration or `--peak-tflops N`";
                (None, format!("the peak of {whose} is not known: {remedy}; until then there is no MFU"))
            }
        };
        Peak { tflops, source }
    }
}

impl ByFormula {
    pub fn all(run: &Run, speed: &Speed, peak: &Peak) -> Vec<ByFormula> {
        let one = |(name, formula): &(&'static str, Formula)| {
            let flops_per_token = per_token(run, *formula);
            let tflops_per_rank = speed.tokens_per_s_per_rank * flops_per_token / 1e12;
            let mfu = peak.tflops.map(|peak| tflops_per_rank / peak);
            ByFormula { formula: name, flops_per_token, tflops_per_rank, mfu }
        };
        Formula::NAMES.iter().map(one).collect()
    }
}

pub fn per_token(run: &Run, formula: Formula) -> f64 {
    let train = &run.config.train;
    formula.per_token(&run.config.model, train.seq_length, train.recompute)
}
