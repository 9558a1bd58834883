//! A dry run of one rank: the memory that it takes, block by block, and its collectives. It runs the real trainer
//! on the dry backend.
//!
//! A step leaves the blocks of an arena as it found them: weights, optimizer state and tables stay where they are, and
//! all others are allocated and freed within it. A dry run asserts that, so one step and one validation stand for all.
//!
//! Not counted are the host's buffers (a micro-batch; the copy of a checkpoint while it is written, which `state.rs`
//! counts) and those of libraries. Measured on the CPU with one thread a rank, beside pools of 160 to 720 MB: 4 MB of
//! heap, including buffers of Open MPI and the `gemm` crate, 16 MB of program and libraries, and during a
//! reduce-scatter of gradients a copy of a bucket on the first rank of the group (Open MPI 4.1 reduces there, then
//! scatters).

mod evaluation;
mod remedies;

use engine::backend::{Backend, Elem, Scratch};
use engine::batch::Blank;
use engine::config::{Axis, Config, Train, samples};
use engine::dry::{Dry, Keep, Log, Peak, Totals};
use engine::error::Result;
use engine::layout::buckets::Bucket;
use engine::layout::mesh::Mesh;
use engine::layout::rank_layout::RankLayout;
use engine::memory::arena::{AllocTrace, ArenaSpec};
use engine::memory::free_list::{Allocator, FreeList, Usage};
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::copies;
use engine::train::likelihood::{Packed, Text};
use engine::train::trainer::{Trainer, shape};
pub use evaluation::evaluation;
use rayon::prelude::*;
pub use remedies::{Remedy, refusal, remedies};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The memory and the collectives of a rank.
#[derive(Debug, Clone)]
pub struct DryRun {
    pub usage: Usage,
    /// Blocks of up to this many bytes are placed at the end of the arena, if the backend has one.
    pub small: usize,
    pub held: HeldBytes,
    /// The rest of the peak by use.
    pub peak: Peak,
    /// Counts of the last step.
    pub step: Totals,
    pub log: Log,
    /// The events of the last step in the log.
    pub last: Range<usize>,
}

/// Bytes of the blocks that stay allocated throughout a forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBytes {
    pub weights: usize,
    pub gradients: usize,
    pub optimizer: usize,
}

impl HeldBytes {
    pub fn of<A: Elem>(config: &Config, rank_layout: &RankLayout, scratch: &dyn Scratch) -> HeldBytes {
        let buckets = rank_layout.buckets(config);
        let of = |bytes: usize, times: usize, ranks: &dyn Fn(&Bucket) -> usize| -> usize {
            buckets.iter().map(|bucket| times * scratch.block(bucket.len / ranks(bucket) * bytes)).sum()
        };
        let (acc, sharding) = (size_of::<f32>(), |bucket: &Bucket| rank_layout.members(bucket.sharded_over()).len());
        HeldBytes {
            weights: of(size_of::<A>(), 1, &|_| 1),
            gradients: of(acc, 1, &|_| 1),
            optimizer: of(acc, 3, &sharding),
        }
    }

    pub fn sum(&self) -> usize {
        self.weights + self.gradients + self.optimizer
    }
}

impl DryRun {
    /// The rest of the peak: activations, buffers of collectives, scratch.
    pub fn beside_held(&self) -> usize {
        self.usage.peak - self.held.sum()
    }

    /// Activations alone.
    pub fn activations(&self) -> usize {
        let Peak { workspace, logits, communication } = self.peak;
        self.beside_held().saturating_sub(workspace + logits + communication)
    }

    /// The reserved bytes by use.
    pub fn uses(&self) -> [(&'static str, usize); 8] {
        let HeldBytes { weights, gradients, optimizer } = self.held;
        [
            ("weights", weights),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("activations", self.activations()),
            ("logits", self.peak.logits),
            ("workspace", self.peak.workspace),
            ("communication", self.peak.communication),
            ("between blocks", self.usage.reserved - self.usage.peak),
        ]
    }

    /// The arena that the run needs.
    pub fn cut(&self) -> ArenaSpec {
        ArenaSpec { bytes: self.usage.reserved, small: self.small }
    }
}

/// A dry run of rank `rank` up to the end of step `steps`: main parameters are loaded and cast to weights, then come
/// the steps, and a validation and scored tasks if the configuration has any.
pub fn run_rank<A: Elem>(
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

/// Like [`run_rank`], with every op logged; blocks are counted without addresses, which is faster.
pub fn dry_run_ops<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
    steps: u64,
) -> Result<DryRun> {
    keeping::<A>(Box::new(FreeList::<()>::default()), config, mesh, rank, scratch, Keep::Ops, steps)
}

/// The memory that a run of rank `rank` takes, whatever its length.
///
/// Without an arena, a few micro-batches need as much memory as a whole step. With one, addresses drift from one
/// micro-batch to the next, so whole steps are run: once to find the best limit between small and large blocks, and
/// once with that limit.
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

/// Like [`plan`], for a step just long enough that each stage reaches its most micro-batches in flight, and without a
/// limit for small blocks. Overstates memory by a few percent.
pub fn plan_shortly<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
) -> Result<DryRun> {
    let allocator = scratch.allocator(0);
    // Interleaved 1F1B runs (v - 1) p + 2 (p - 1) forwards of a chunk before the first backward, v a micro-batch.
    let together = config.train.micro_batch_size * mesh.replicas();
    let few = with_batch(config, config.train.global_batch_size.min(3 * config.parallel.pipeline * together));
    keeping::<A>(allocator, &few, mesh, rank, scratch, Keep::Totals, 1)
}

/// Like [`run_rank`], with this allocator.
fn keeping<A: Elem>(
    allocator: Box<dyn Allocator>,
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + 'static,
    keep: Keep,
    steps: u64,
) -> Result<DryRun> {
    let held = HeldBytes::of::<A>(config, &RankLayout::new(config, mesh.clone(), rank), &scratch);
    let dry = Dry::<A>::new(rank, scratch, allocator, keep).imbalance(config.parallel.expert_imbalance);
    let mut trainer = Trainer::new(dry, config.clone(), mesh.clone(), rank);
    // Loading main parameters allocates nothing.
    trainer.cast_main_params();
    if mesh.ranks() > 1 {
        copies::checksums(&mut trainer)?;
    }
    let blank = Blank(config.train.seq_length);
    let (found, mut step, mut last) = (trainer.b.live(), Totals::default(), 0..0);
    // Then later steps have the same addresses.
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
        // The first batch finds the all-gather of weights in flight, the second does not.
        trainer.config.train.eval_steps = config.train.eval_steps.min(2);
        trainer.validate(&blank, 0)?;
        as_found(&trainer.b, "a validation");
    }
    if config.eval.interval > 0 {
        let shape = shape(config);
        let full = Text { ids: vec![0; shape.seq + 1], from: 1 };
        trainer.log_likelihoods(&Packed::new(&vec![full; 2 * shape.sequences], shape))?;
        as_found(&trainer.b, "scored tasks");
    }
    let (usage, peak, log) = (trainer.b.usage(), trainer.b.peak(), trainer.b.log());
    Ok(DryRun { usage, small: 0, held, peak, step, log, last })
}

/// The memory of a rank by [`plan`] and the counts of a whole step; the log may be that of a shorter step.
pub fn dry_run_step<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + Clone + 'static,
) -> Result<DryRun> {
    let planned = plan::<A>(config, mesh, rank, scratch.clone())?;
    if scratch.allocator(0).live().is_some() {
        return Ok(planned);
    }
    Ok(DryRun { step: step_totals::<A>(config, mesh, rank, scratch)?, ..planned })
}

/// The counts of a step, extrapolated from the two shortest ones: a step has a fixed part, and the same for each
/// micro-batch.
pub fn step_totals<A: Elem>(
    config: &Config,
    mesh: &Mesh,
    rank: usize,
    scratch: impl Scratch + Clone + 'static,
) -> Result<Totals> {
    let least = samples(&config.train, &config.parallel, mesh.replicas());
    let totals = |n: usize| -> Result<Totals> {
        let short = with_batch(config, n * least);
        let allocator = Box::new(FreeList::<()>::default());
        Ok(keeping::<A>(allocator, &short, mesh, rank, scratch.clone(), Keep::Totals, 1)?.step)
    };
    let (one, more) = (totals(1)?, config.train.global_batch_size / least - 1);
    if more == 0 {
        return Ok(one);
    }
    let each = totals(2)?.since(&one);
    Ok(one.and(&each, more as u64))
}

/// A configuration with a shorter step that needs the same memory: just enough micro-batches that each replaces
/// another.
pub fn shortened(config: &Config, mesh: &Mesh) -> Config {
    let p = &config.parallel;
    let together = config.train.micro_batch_size * mesh.replicas();
    let most = (2 * p.virtual_pipeline + 1) * p.pipeline;
    with_batch(config, config.train.global_batch_size.min(most * together))
}

fn with_batch(config: &Config, global_batch_size: usize) -> Config {
    Config { train: Train { global_batch_size, ..config.train.clone() }, ..config.clone() }
}

/// `work` on each item, on all cores; results in order, or the first error. `done` is called after each item.
pub fn on_all_cores<T: Send, R: Send>(
    items: Vec<T>,
    done: &(dyn Fn() + Sync),
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let one = |item| {
        let result = work(item);
        done();
        result
    };
    items.into_par_iter().with_max_len(1).map(one).collect::<Vec<_>>().into_iter().collect()
}

/// One rank of each stage, which stands for the ranks that do the same at the same time. Among tensor-parallel ranks,
/// the first has the largest share of the memory.
pub fn stages(mesh: &Mesh) -> Vec<usize> {
    (0..mesh.ranks()).filter(|&rank| mesh.coord(rank, Axis::Tensor) + mesh.replica(rank) == 0).collect()
}

/// Classes of ranks with the same memory and traffic; the first rank of each has data-parallel rank 0.
pub fn classes(mesh: &Mesh) -> Vec<Vec<usize>> {
    let of_first = (0..mesh.ranks()).filter(|&rank| mesh.replica(rank) == 0);
    of_first.map(|rank| mesh.replicas_of(rank)).collect()
}

#[cfg(test)]
mod tests;
