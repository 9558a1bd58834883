//! The breakdown of a step's time: the phases of each rank, the pipeline bubble, exposed communication and stragglers.
//!
//! All of it comes from the sampled steps, except for the phases between steps. Few steps validate or save, and sampled
//! ones may do so more often than others; so these are means over all steps, measured on rank 0.

use super::speed::{Speed, median, steady};
use crate::records::ranks::Sample;
use crate::run::Run;
use crate::stragglers::{Straggler, slow};
use engine::config::Axis;
use engine::time::{CommClass, Phase};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Time {
    /// The number of samples, and the steps of the first and the last.
    pub samples: usize,
    pub first_step: u64,
    pub last_step: u64,
    /// Mean over samples and ranks.
    pub step_s: f64,
    /// Pipeline stage of each rank.
    pub stages: Vec<usize>,
    pub phases: Vec<PhaseTime>,
    pub bubble: Bubble,
    /// Exposed communication, the longest first.
    pub waits: Vec<WaitTime>,
    pub stragglers: Vec<Slow>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseTime {
    #[serde(serialize_with = "label")]
    pub phase: Phase,
    /// [`Phase::is_in_step`].
    pub in_step: bool,
    /// Mean over ranks.
    pub mean_s: f64,
    /// Share of the time of all phases.
    pub share: f64,
    /// One value per rank; a single one, of rank 0, for a phase between steps.
    pub by_rank_s: Vec<f64>,
}

/// The share of a step in which ranks wait for other stages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bubble {
    pub measured: f64,
    /// The part of it at the end of a step, in seconds: after its last backward pass a rank waits at the all-reduce of
    /// the gradient norm for the other stages.
    pub tail_s: f64,
    /// (p - 1) / (v m + p - 1) with p stages, v virtual stages and m micro-batches.
    pub theory: f64,
}

/// Exposed communication of a kind of group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitTime {
    pub group: String,
    pub mean_s: f64,
    /// Share of a step.
    pub share: f64,
    pub most_s: f64,
    pub most_rank: usize,
}

/// A straggler: a rank that computes longer than the others of its stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slow {
    pub rank: usize,
    pub host: Option<String>,
    pub busy_s: f64,
    /// Median of the others.
    pub usual_s: f64,
    /// `busy_s / usual_s - 1`
    pub by: f64,
}

fn label<S: Serializer>(phase: &Phase, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(phase.label())
}

impl Time {
    /// `None` where no step was sampled.
    pub fn of(run: &Run, speed: &Speed) -> Option<Time> {
        let samples = settled(&run.samples.records, speed.first_step);
        let (first, last) = (samples.first()?.step, samples.last()?.step);
        let ranks = run.mesh.ranks();
        let seconds: Vec<f64> = (0..ranks).map(|rank| mean(samples.iter().map(|s| s.seconds[rank]))).collect();
        let step_s = mean(seconds.iter().copied());
        let stages: Vec<usize> = (0..ranks).map(|rank| run.mesh.coord(rank, Axis::Pipeline)).collect();
        let waits = by_name(&samples, ranks, |sample| &sample.waits);
        Some(Time {
            samples: samples.len(),
            first_step: first,
            last_step: last,
            step_s,
            phases: phases(run, &samples),
            bubble: Bubble::of(run, &waits, &seconds),
            waits: exposed(&waits, step_s),
            stragglers: stragglers(run, &stages, &samples),
            stages,
        })
    }
}

/// Samples from step `first` on, or all where that leaves none.
fn settled(samples: &[Sample], first: u64) -> Vec<&Sample> {
    let from = samples.partition_point(|sample| sample.step < first);
    samples[if from == samples.len() { 0 } else { from }..].iter().collect()
}

/// Means over samples: name -> value of each rank.
fn by_name(
    samples: &[&Sample],
    ranks: usize,
    of: impl Fn(&Sample) -> &BTreeMap<String, Vec<f64>>,
) -> BTreeMap<String, Vec<f64>> {
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, seconds) in samples.iter().flat_map(|sample| of(sample)) {
        let sum = sums.entry(name.clone()).or_insert_with(|| vec![0.0; ranks]);
        sum.iter_mut().zip(seconds).for_each(|(sum, s)| *sum += s / samples.len() as f64);
    }
    sums
}

fn phases(run: &Run, samples: &[&Sample]) -> Vec<PhaseTime> {
    let sampled = by_name(samples, run.mesh.ranks(), |sample| &sample.phases);
    let steps = steady(run);
    let mut phases = Phase::ALL.map(|phase| {
        let (name, in_step) = (phase.key(), phase.is_in_step());
        let by_rank_s = if in_step {
            sampled.get(name).cloned().unwrap_or(vec![0.0; run.mesh.ranks()])
        } else {
            vec![mean(steps.iter().map(|step| step.parts.get(name).copied().unwrap_or_default()))]
        };
        let mean_s = mean(by_rank_s.iter().copied());
        PhaseTime { phase, in_step, mean_s, share: 0.0, by_rank_s }
    });
    let all: f64 = phases.iter().map(|phase| phase.mean_s).sum();
    phases.iter_mut().for_each(|phase| phase.share = phase.mean_s / all);
    phases.into()
}

impl Bubble {
    /// `waits`: by group and rank; `seconds`: of the step, by rank.
    fn of(run: &Run, waits: &BTreeMap<String, Vec<f64>>, seconds: &[f64]) -> Bubble {
        let of = |class: CommClass, rank: usize| {
            let groups = waits.iter().filter(|(group, _)| CommClass::of_group(group) == Some(class));
            groups.map(|(_, by_rank)| by_rank[rank]).sum::<f64>()
        };
        let ends: Vec<f64> = (0..seconds.len()).map(|rank| of(CommClass::StepEnd, rank)).collect();
        // The last rank to arrive waits for nobody. A single stage waits for no other.
        let least = ends.iter().copied().fold(f64::INFINITY, f64::min);
        let tail = |rank: usize| if run.config.parallel.pipeline > 1 { ends[rank] - least } else { 0.0 };
        let share = |rank: usize| (of(CommClass::Pipeline, rank) + tail(rank)) / seconds[rank];
        Bubble {
            measured: mean((0..seconds.len()).map(share)),
            tail_s: mean((0..seconds.len()).map(tail)),
            theory: theory(run),
        }
    }
}

fn theory(run: &Run) -> f64 {
    let (p, v) = (run.config.parallel.pipeline as f64, run.config.parallel.virtual_pipeline as f64);
    let train = &run.config.train;
    let m = (train.global_batch_size / (train.micro_batch_size * run.mesh.replicas())) as f64;
    (p - 1.0) / (v * m + p - 1.0)
}

fn exposed(waits: &BTreeMap<String, Vec<f64>>, step_s: f64) -> Vec<WaitTime> {
    let one = |(group, by_rank): (&String, &Vec<f64>)| {
        let mean_s = mean(by_rank.iter().copied());
        let most = (0..by_rank.len()).rev().max_by(|&a, &b| by_rank[a].total_cmp(&by_rank[b])).unwrap_or(0);
        WaitTime { group: group.clone(), mean_s, share: mean_s / step_s, most_s: by_rank[most], most_rank: most }
    };
    let mut waits: Vec<WaitTime> = waits.iter().map(one).collect();
    waits.sort_by(|a, b| b.mean_s.total_cmp(&a.mean_s));
    waits
}

fn stragglers(run: &Run, stages: &[usize], samples: &[&Sample]) -> Vec<Slow> {
    let busy: Vec<f64> = (0..stages.len()).map(|rank| median(samples.iter().map(|s| s.busy[rank]))).collect();
    let host = |rank: usize| run.machine.present()?.hosts.get(rank).cloned();
    let one = |s: Straggler| Slow { rank: s.rank, host: host(s.rank), busy_s: s.seconds, usual_s: s.usual, by: s.by() };
    slow(stages, &busy).into_iter().map(one).collect()
}

/// The mean; 0 if there are no numbers.
pub fn mean(xs: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = xs.into_iter().fold((0.0, 0), |(sum, n), x| (sum + x, n + 1));
    if n == 0 { 0.0 } else { sum / n as f64 }
}
