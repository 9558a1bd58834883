//! What `plan` said of the run, beside what came.

use super::super::run::{Plan, Run};
use super::speed::Speed;
use super::time::{STAGES, Time};
use crate::settings::layout;
use engine::layout::mesh::GroupKind;
use engine::model::flops;
use plan::Share;
use serde::Serialize;

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

/// A part of the planned step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedShare {
    pub name: String,
    pub seconds: f64,
    /// Where the run tells it apart, too.
    pub measured_s: Option<f64>,
}

impl Planned {
    /// `None` without a plan, or where it has no time or is not one of this run.
    pub fn of(run: &Run, speed: &Speed, time: Option<&Time>) -> Option<Planned> {
        let plan = run.plan.as_ref().filter(|plan| differs(plan, run).is_none())?;
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

/// What it is a plan of, where that is not this run, and what the run is.
pub fn differs(plan: &Plan, run: &Run) -> Option<[String; 2]> {
    let (settings, parameters) = (&run.settings, flops::parameters(&run.config.model));
    let by = |planned: String, ran: String| (planned != ran).then_some([planned, ran]);
    let model = |parameters: u64| format!("a model of {parameters} parameters");
    by(layout(plan.layout()), layout(run.mesh.layout()))
        .or_else(|| by(model(plan.parameters?), model(parameters)))
        .or_else(|| by(plan.settings.clone()?, settings.clone()))
}

/// Seconds of a sampled step that are the same as what the plan calls so. A run cannot tell apart what a wait for another
/// stage is made of: all of it stands beside the bubble, nothing beside the messages.
fn measured(name: &str, time: &Time) -> Option<f64> {
    let waits = |kinds: &[GroupKind]| -> f64 {
        let of = time.waits.iter().filter(|wait| kinds.iter().any(|kind| kind.name() == wait.group));
        of.map(|wait| wait.mean_s).sum()
    };
    let share = Share::ALL.into_iter().find(|share| share.name() == name)?;
    match share {
        Share::Bubble => Some(waits(&STAGES) + time.bubble.tail_s),
        Share::Tensor => Some(waits(&[GroupKind::Tensor, GroupKind::KvHeads])),
        Share::Data => Some(
            waits(&[GroupKind::Data, GroupKind::Optimizer, GroupKind::Tied, GroupKind::World]) - time.bubble.tail_s,
        ),
        Share::Computes(_) | Share::Messages | Share::Software => None,
    }
}
