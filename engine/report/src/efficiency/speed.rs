//! The speed of a run: its median step, and the TFLOPS and MFU of that by each formula.

use crate::peak;
use crate::records::metrics::StepRecord;
use crate::run::Run;
use engine::config::Named;
use engine::model::flops::Formula;
use serde::Serialize;

/// Leading steps that are slower than the others, since they allocate buffers and open connections.
const WARM_UP: usize = 2;

/// The median step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// The first, the last and the number of the steps that the median is taken of.
    pub first_step: u64,
    pub last_step: u64,
    pub steps: usize,
    /// Number of steps with other settings, which are excluded.
    pub other_settings: usize,
    pub step_s: f64,
    pub tokens_per_s_per_rank: f64,
    pub tokens_per_s: f64,
    /// The median share of the planner's ideal time, where the run has a cluster file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sol: Option<f64>,
}

/// The peak of one rank's device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Peak {
    pub tflops: Option<f64>,
    /// The source of the number; if there is none, a hint on how to give one.
    pub source: String,
}

/// The median step by one FLOPs formula.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByFormula {
    pub formula: &'static str,
    pub flops_per_token: f64,
    pub tflops_per_rank: f64,
    /// A fraction of the peak, where that is known.
    pub mfu: Option<f64>,
}

/// The steps with the current settings without the warm-up, unless there are no others.
pub fn steady(run: &Run) -> Vec<&StepRecord> {
    let steps: Vec<&StepRecord> = run.current_steps().collect();
    let skip = if steps.len() > WARM_UP { WARM_UP } else { 0 };
    steps[skip..].to_vec()
}

/// The median of the finite numbers; 0 where there are none.
pub fn median(xs: impl IntoIterator<Item = f64>) -> f64 {
    let mut xs: Vec<f64> = xs.into_iter().filter(|x| x.is_finite()).collect();
    xs.sort_by(f64::total_cmp);
    match xs.len() {
        0 => 0.0,
        n => (xs[(n - 1) / 2] + xs[n / 2]) / 2.0,
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
            other_settings: run.steps.records.len() - run.current_steps().count(),
            step_s,
            tokens_per_s_per_rank: tokens_per_s / ranks as f64,
            tokens_per_s,
            sol: sol(&steps),
        }
    }
}

/// `None` where no step has one.
fn sol(steps: &[&StepRecord]) -> Option<f64> {
    let known: Vec<f64> = steps.iter().filter_map(|step| step.sol).collect();
    (!known.is_empty()).then(|| median(known))
}

impl Peak {
    /// `given`: on the command line, which takes precedence.
    pub fn of(run: &Run, given: Option<f64>) -> Peak {
        let device = run.machine.present().map(|machine| machine.device.as_str());
        let known = device.and_then(|device| Some((peak::bf16_tflops(device)?, device)));
        let (tflops, source) = match (given, run.config.report.peak_tflops, known) {
            (Some(given), ..) => (Some(given), "given by `--peak-tflops`".into()),
            (None, Some(own), _) => (Some(own), "given by `report.peak_tflops` of the configuration".into()),
            (None, None, Some((known, device))) => (Some(known), format!("dense bf16 on {device} by its data sheet")),
            (None, None, None) => {
                let unknown = run.machine.ignored().unwrap_or("no `machine.json`");
                let whose = device.map_or(format!("the device ({unknown})"), |device| format!("\"{device}\""));
                let remedy = "set `report.peak_tflops` in the configuration or pass `--peak-tflops N`";
                (None, format!("there is no MFU, since the peak of {whose} is unknown: {remedy}"))
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
