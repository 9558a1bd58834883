//! The step of a configuration on a mesh: rehearsed and replayed.

use super::replay::Costs;
use super::step::Step;
use crate::dry_run::{DryRun, dry_run_ops};
use engine::backend::{Elem, Scratch};
use engine::config::{Axis, Config};
use engine::dry::Log;
use engine::error::Result;
use engine::layout::mesh::Mesh;
use std::ops::Range;
use std::sync::Mutex;

/// A rank of each stage: those beside it do the same at the same time.
pub fn stages(mesh: &Mesh) -> Vec<usize> {
    (0..mesh.ranks()).filter(|&rank| mesh.coord(rank, Axis::Tensor) + mesh.coord(rank, Axis::Data) == 0).collect()
}

/// The first two steps of a rank; the second finds the weights of the first on their way, as all later ones do.
pub fn two_steps<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + Clone + 'static,
) -> Result<DryRun> {
    dry_run_ops::<A>(config, mesh, rank, scratch, 2)
}

/// The second of [`two_steps`] of all stages, run against each other.
pub fn run(rehearsed: &[DryRun], costs: &dyn Costs) -> Step {
    Step::simulate(&told(rehearsed), costs)
}

/// Seconds of a step, on this thread alone.
pub fn seconds<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    costs: &dyn Costs,
    scratch: impl Scratch + Clone + 'static,
) -> Result<f64> {
    let one = |rank| two_steps::<A>(config, mesh, rank, scratch.clone());
    let rehearsed: Vec<DryRun> = stages(mesh).into_iter().map(one).collect::<Result<_>>()?;
    Ok(Step::seconds_of(&told(&rehearsed), costs))
}

fn told(rehearsed: &[DryRun]) -> Vec<(&Log, Range<usize>)> {
    rehearsed.iter().map(|of| (&of.log, of.last.clone())).collect()
}

/// What `work` makes of each, in their order, on all cores.
pub fn on_all_cores<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (queue, done) = (Mutex::new(items.into_iter().enumerate()), Mutex::new(Vec::new()));
    let next = || queue.lock().expect("nothing panics while it takes the next").next();
    let some = || {
        while let Some((at, item)) = next() {
            let result = work(item);
            done.lock().expect("nothing panics while it puts one away").push((at, result));
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (0..cores).for_each(|_| _ = scope.spawn(some));
    });
    let mut done = done.into_inner().expect("all are done");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
