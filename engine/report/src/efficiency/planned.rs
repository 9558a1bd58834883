//! Planned and measured values beside each other: the memory of each rank, and the time of a step.

use super::speed::Speed;
use super::time::Time;
use crate::records::memory::RankMemory;
use crate::run::Run;
use engine::config::Axis;
use engine::time::{CommClass, TimeCategory};
use serde::Serialize;

/// Memory of a rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryUse {
    pub rank: usize,
    pub stage: usize,
    pub planned_bytes: u64,
    pub used_bytes: u64,
    /// On the host, while a checkpoint is written.
    pub checkpoint_copy_bytes: u64,
    /// The device memory of CUDA's context, the libraries and other processes: `[planned, used]`. `None` on the CPU.
    pub others_bytes: Option<[u64; 2]>,
}

/// The step of `plan --json` and that of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    pub cluster: String,
    pub ranks: usize,
    pub step_s: f64,
    pub measured_step_s: f64,
    pub tokens_per_s_per_rank: f64,
    pub measured_tokens_per_s_per_rank: f64,
    pub shares: Vec<PlannedShare>,
}

/// A category of the planned step's time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedShare {
    pub name: String,
    pub seconds: f64,
    /// `None` for a category that a run does not measure.
    pub measured_s: Option<f64>,
}

impl MemoryUse {
    /// `None` without a `memory.json` of this run.
    pub fn all(run: &Run) -> Option<Vec<MemoryUse>> {
        let one = |rank: &RankMemory| MemoryUse {
            rank: rank.rank,
            stage: run.mesh.coord(rank.rank, Axis::Pipeline),
            planned_bytes: rank.planned.reserved_bytes,
            used_bytes: rank.used.reserved_bytes,
            checkpoint_copy_bytes: rank.used.checkpoint_copy_bytes,
            others_bytes: rank.planned.others_bytes.zip(rank.used.others_bytes).map(|(plan, used)| [plan, used]),
        };
        Some(run.memory.present()?.ranks.iter().map(one).collect())
    }
}

impl Planned {
    /// `None` without a plan of this run that has a step time.
    pub fn of(run: &Run, speed: &Speed, time: Option<&Time>) -> Option<Planned> {
        let plan = run.plan.present()?;
        let step = plan.step.as_ref()?;
        let share = |(name, seconds): (&String, &serde_json::Value)| {
            let measured_s = time.and_then(|time| measured(name, time));
            Some(PlannedShare { name: name.clone(), seconds: seconds.as_f64()?, measured_s })
        };
        Some(Planned {
            cluster: plan.cluster.clone(),
            ranks: plan.ranks,
            step_s: step.seconds,
            measured_step_s: speed.step_s,
            tokens_per_s_per_rank: step.tokens_per_s_per_gpu,
            measured_tokens_per_s_per_rank: speed.tokens_per_s_per_rank,
            shares: step.shares.iter().filter_map(share).collect(),
        })
    }
}

/// Measured seconds of the [`TimeCategory`] of this name. A run cannot split a wait for another stage into bubble and
/// message: all of it counts as bubble.
fn measured(name: &str, time: &Time) -> Option<f64> {
    let waits = |classes: &[CommClass]| -> f64 {
        let is_of = |group: &str| CommClass::of_group(group).is_some_and(|class| classes.contains(&class));
        time.waits.iter().filter(|wait| is_of(&wait.group)).map(|wait| wait.mean_s).sum()
    };
    let category = TimeCategory::ALL.into_iter().find(|category| category.name() == name)?;
    match category {
        TimeCategory::Bubble => Some(waits(&[CommClass::Pipeline]) + time.bubble.tail_s),
        TimeCategory::Tensor => Some(waits(&[CommClass::Tensor])),
        TimeCategory::Experts => Some(waits(&[CommClass::Experts])),
        TimeCategory::Data => Some(waits(&[CommClass::Data, CommClass::StepEnd]) - time.bubble.tail_s),
        TimeCategory::Computes(_) | TimeCategory::Messages | TimeCategory::Software => None,
    }
}
