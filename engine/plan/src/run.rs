//! The simulated step of a configuration on a mesh: dry runs of its stages, replayed against each other.

use super::replay::CostModel;
use super::step::Step;
use crate::dry_run::{DryRun, dry_run_ops, on_all_cores, plan, stages};
use engine::backend::{Elem, Scratch};
use engine::config::{Axis, Config, Train};
use engine::dry::Log;
use engine::error::Result;
use engine::layout::mesh::Mesh;
use std::ops::Range;

/// The memory of each stage, exactly.
pub fn memory<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    scratch: &(impl Scratch + Clone + Sync + 'static),
    done: &(dyn Fn() + Sync),
) -> Result<Vec<DryRun>> {
    on_all_cores(stages(mesh), done, |rank| plan::<A>(config, mesh, rank, scratch.clone()))
}

/// The first two steps of each stage. The second finds the all-gather of weights in flight, as all later steps do.
pub fn two_steps<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    scratch: &(impl Scratch + Clone + Sync + 'static),
    done: &(dyn Fn() + Sync),
) -> Result<Vec<DryRun>> {
    on_all_cores(stages(mesh), done, |rank| dry_run_ops::<A>(config, mesh, rank, scratch.clone(), 2))
}

/// The second of [`two_steps`], replayed.
pub fn simulate(stages: &[DryRun], costs: &dyn CostModel) -> Step {
    Step::simulate(&last_steps(stages), costs)
}

/// Seconds of a step, on this thread alone.
pub fn seconds<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    costs: &dyn CostModel,
    scratch: &(impl Scratch + Clone + 'static),
) -> Result<f64> {
    let one = |rank| dry_run_ops::<A>(config, mesh, rank, scratch.clone(), 2);
    let stages: Vec<DryRun> = stages(mesh).into_iter().map(one).collect::<Result<_>>()?;
    Ok(Step::seconds_of(&last_steps(&stages), costs))
}

/// A step of any number of micro-batches, extrapolated from [`short_steps`].
pub fn whole_step<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    costs: &dyn CostModel,
    scratch: &(impl Scratch + Clone + Sync + 'static),
) -> Result<Step> {
    let (short, times) = short_steps(config, mesh);
    let step = |config| Ok(simulate(&two_steps::<A>(config, mesh, scratch, &|| ())?, costs));
    let steps: Vec<Step> = short.iter().map(step).collect::<Result<_>>()?;
    Ok(steps[0].extrapolated(&steps[steps.len() - 1], times))
}

fn last_steps(stages: &[DryRun]) -> Vec<(&Log, Range<usize>)> {
    stages.iter().map(|stage| (&stage.log, stage.last.clone())).collect()
}

/// The shorter steps from which a step is extrapolated, with p and 2p micro-batches for p stages, and how many times
/// their difference is added to the first: from p micro-batches on, each costs the same. A step of up to 2p
/// micro-batches is returned unchanged.
pub fn short_steps(config: &Config, mesh: &Mesh) -> (Vec<Config>, f64) {
    let samples = config.train.micro_batch_size * mesh.replicas();
    let (stages, n_mbs) = (mesh.size(Axis::Pipeline), config.train.global_batch_size / samples);
    if n_mbs <= 2 * stages {
        return (vec![config.clone()], 0.0);
    }
    let with = |n_mbs: usize| {
        let train = Train { global_batch_size: n_mbs * samples, ..config.train.clone() };
        Config { train, ..config.clone() }
    };
    (vec![with(stages), with(2 * stages)], (n_mbs - stages) as f64 / stages as f64)
}
