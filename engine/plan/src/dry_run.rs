//! A run of one rank that does not take place: what it would hold of the memory, op by op and byte by
//! byte, and what it would say to the other ranks. The trainer is the one that trains, on the dry backend.
//!
//! A step leaves the blocks of a slab as it found them: weights, optimizer and tables stay where they are, and the
//! rest comes and goes in it. A rehearsal holds steps and validations to that, and so one of each says all.
//!
//! On top of that come what the host holds (a micro-batch, a checkpoint's copy while it is written, which
//! `state.rs` counts) and what libraries hold. Measured on the CPU, one thread a rank, beside pools of 160 to 720 MB: 4 MB of heap, Open
//! MPI's and the `gemm` crate's buffers among it, 16 MB of the program and its libraries, and where gradients
//! are reduce-scattered a copy of a bucket on the first rank of the group, for as long as that takes (Open MPI
//! 4.1 sums there, then scatters).

mod remedies;

use engine::backend::{Backend, Elem, Scratch};
use engine::batch::Blank;
use engine::config::{Axis, Config, Train, samples};
use engine::dry::{Dry, Keep, Log, Peak, Totals};
use engine::error::Result;
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::memory::arena::{AllocTrace, ArenaSpec};
use engine::memory::free_list::{Allocator, FreeList, Usage};
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::trainer::Trainer;
pub use remedies::{Remedy, refusal, remedies};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// What a rank would hold and send.
#[derive(Debug, Clone)]
pub struct DryRun {
    pub usage: Usage,
    /// Of a backend whose memory is a slab: blocks of up to so many bytes lie at its end.
    pub small: usize,
    pub held: Held,
    /// Of the rest of the peak.
    pub peak: Peak,
    /// Of the last step.
    pub step: Totals,
    /// Of everything.
    pub log: Log,
    /// The events of the log that are the last step's.
    pub last: Range<usize>,
}

/// What lives all through a forward and backward pass, in bytes of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub weights: usize,
    pub gradients: usize,
    pub optimizer: usize,
}

impl Held {
    /// Of the rank at `rank_layout`.
    pub fn of<A: Elem>(config: &Config, rank_layout: &RankLayout, scratch: &dyn Scratch) -> Held {
        let (buckets, ranks) = (rank_layout.buckets(config), rank_layout.optimizer_members(config).len());
        let of = |bytes: usize, times: usize, ranks: usize| -> usize {
            buckets.iter().map(|bucket| times * scratch.block(bucket.len / ranks * bytes)).sum()
        };
        let acc = size_of::<f32>();
        Held { weights: of(size_of::<A>(), 1, 1), gradients: of(acc, 1, 1), optimizer: of(acc, 3, ranks) }
    }

    pub fn sum(&self) -> usize {
        self.weights + self.gradients + self.optimizer
    }
}

impl DryRun {
    /// The rest of the peak: activations, what collectives have under way, scratch.
    pub fn activations(&self) -> usize {
        self.usage.peak - self.held.sum()
    }

    /// Of that, what is nothing else.
    pub fn kept(&self) -> usize {
        let Peak { workspace, logits, communication } = self.peak;
        self.activations().saturating_sub(workspace + logits + communication)
    }

    /// How the slab is cut that the run needs.
    pub fn cut(&self) -> ArenaSpec {
        ArenaSpec { bytes: self.usage.reserved, small: self.small }
    }
}

/// What a run of rank `rank` does up to the end of step `steps`: the masters loaded, the weights made of
/// them, the steps, and a validation where the configuration has any.
pub fn rehearse<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
    keep: Keep,
    steps: u64,
) -> Result<DryRun> {
    let allocator = scratch.allocator(0);
    keeping::<A>(allocator, config, mesh, rank, scratch, keep, steps)
}

/// As [`rehearse`], for those who only ask what is done: blocks are counted and have no places.
pub fn dry_run_ops<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
    steps: u64,
) -> Result<DryRun> {
    keeping::<A>(Box::new(FreeList::<()>::default()), config, mesh, rank, scratch, Keep::Ops, steps)
}

/// What a run of rank `rank` takes of its memory, however long it is.
///
/// Where blocks have no places, a few micro-batches say as much as a whole step. Where they have, whole steps are
/// rehearsed, since places drift from one micro-batch to the next: once to find where the border between small and
/// large blocks does best, and once with it.
pub fn plan<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + Clone + 'static,
) -> Result<DryRun> {
    let with =
        |config: &Config, allocator| keeping::<A>(allocator, config, mesh, rank, scratch.clone(), Keep::Totals, 1);
    let allocator = scratch.allocator(0);
    if allocator.live().is_none() {
        return with(&shortened(config, mesh), allocator);
    }
    let trace = Rc::new(RefCell::new(AllocTrace::default()));
    with(config, Box::new(trace.clone()))?;
    let small = trace.borrow().border();
    Ok(DryRun { small, ..with(config, scratch.allocator(small))? })
}

/// As [`plan`], of a step with so many micro-batches that each stage has come to hold its most, and no border: a few percent
/// more than a rank takes.
pub fn plan_shortly<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
) -> Result<DryRun> {
    let allocator = scratch.allocator(0);
    // 1F1B, interleaved: (v - 1) p + 2 (p - 1) forwards of a chunk come before the first backward, v of them a micro-batch.
    let together = config.train.micro_batch_size * mesh.size(Axis::Data);
    let few = with_batch(config, config.train.global_batch_size.min(3 * config.parallel.pipeline * together));
    keeping::<A>(allocator, &few, mesh, rank, scratch, Keep::Totals, 1)
}

/// As [`rehearse`], with these books.
fn keeping<A: Elem>(
    allocator: Box<dyn Allocator>,
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
    keep: Keep,
    steps: u64,
) -> Result<DryRun> {
    let held = Held::of::<A>(config, &RankLayout::new(config, mesh.clone(), rank), &scratch);
    let mut trainer = Trainer::new(Dry::<A>::new(rank, scratch, allocator, keep), config.clone(), mesh.clone(), rank);
    // The masters are loaded into blocks that are there already.
    trainer.cast_main_params();
    let blank = Blank(config.train.seq_length);
    let (found, mut step, mut last) = (trainer.b.live(), Totals::default(), 0..0);
    // So that nothing that comes later can lie elsewhere.
    let as_found = |b: &Dry<A>, what| assert_eq!(b.live(), found, "blocks after {what}, and before, on rank {rank}");
    for _ in 0..steps {
        let before = trainer.b.totals();
        let first = trainer.b.events();
        let mut clock = Clock::start(&trainer.b, Phase::Data);
        trainer.step(&blank, &mut clock)?;
        step = trainer.b.totals().since(&before);
        last = first..trainer.b.events();
        as_found(&trainer.b, "a step");
    }
    if config.train.eval_interval > 0 {
        // The first finds the weights on their way.
        trainer.config.train.eval_steps = config.train.eval_steps.min(2);
        trainer.validate(&blank)?;
        as_found(&trainer.b, "a validation");
    }
    let (usage, peak, log) = (trainer.b.usage(), trainer.b.peak(), trainer.b.log());
    Ok(DryRun { usage, small: 0, held, peak, step, log, last })
}

/// The step of a rank with what [`plan`] says of its memory: as [`rehearse`] of one step, but that the log may be of a
/// shorter one.
///
/// A step does a part that does not depend on its micro-batches, and the same for each of them: how much that is
/// say the two shortest steps.
pub fn dry_run_step<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + Clone + 'static,
) -> Result<DryRun> {
    let rehearsed = plan::<A>(config, mesh, rank, scratch.clone())?;
    if scratch.allocator(0).live().is_some() {
        return Ok(rehearsed);
    }
    let of = |config: &Config| rehearse::<A>(config, mesh, rank, scratch.clone(), Keep::Totals, 1);
    let least = samples(&config.train, &config.parallel, mesh.size(Axis::Data));
    let left = (config.train.global_batch_size - shortened(config, mesh).train.global_batch_size) / least;
    if left == 0 {
        return Ok(rehearsed);
    }
    let [one, two] = [least, 2 * least].map(|batch| of(&with_batch(config, batch)));
    let each = two?.step.since(&one?.step);
    Ok(DryRun { step: rehearsed.step.and(&each, left as u64), ..rehearsed })
}

/// A configuration that needs as much memory as this one and is sooner rehearsed: a step has no more
/// micro-batches than it takes until each replaces another.
pub fn shortened(config: &Config, mesh: &Mesh) -> Config {
    let p = &config.parallel;
    let together = config.train.micro_batch_size * mesh.size(Axis::Data);
    let most = (2 * p.virtual_pipeline + 1) * p.pipeline;
    with_batch(config, config.train.global_batch_size.min(most * together))
}

fn with_batch(config: &Config, global_batch_size: usize) -> Config {
    Config { train: Train { global_batch_size, ..config.train.clone() }, ..config.clone() }
}

/// The ranks that hold and send the same during a step, the first of each class being the data-parallel rank 0.
pub fn classes(mesh: &Mesh) -> Vec<Vec<usize>> {
    let of_first = (0..mesh.ranks()).filter(|&rank| mesh.coord(rank, Axis::Data) == 0);
    of_first.map(|rank| mesh.group(rank, Axis::Data)).collect()
}

#[cfg(test)]
mod tests;
