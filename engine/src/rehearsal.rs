//! A run of one rank that does not take place: what it would hold of the memory, op by op and byte by
//! byte, and what it would say to the other ranks. The trainer is the one that trains, on the dry backend.

use crate::backend::{Backend, Elem, Scratch};
use crate::batch::Blank;
use crate::clock::{Clock, Phase};
use crate::config::{Axis, Config};
use crate::dry::{Dry, Keep, Log, Traffic};
use crate::error::Result;
use crate::ledger::Usage;
use crate::mesh::{Kind, Mesh};
use crate::place::Place;
use crate::trainer::Trainer;
use std::collections::BTreeMap;

/// What a rank would hold and send.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    pub usage: Usage,
    pub held: Held,
    /// Of the last step, by kind of group.
    pub traffic: BTreeMap<Kind, Traffic>,
    /// Of everything.
    pub log: Log,
}

/// What lives all through a forward and backward pass, in bytes of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub weights: usize,
    pub gradients: usize,
    pub optimizer: usize,
}

impl Held {
    /// Of the rank at `place`.
    pub fn of<A: Elem>(config: &Config, place: &Place, scratch: &dyn Scratch) -> Held {
        let (buckets, ranks) = (place.buckets(config), place.optimizer_members(config).len());
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

impl Rehearsal {
    /// The rest of the peak: activations, what collectives have under way, scratch.
    pub fn activations(&self) -> usize {
        self.usage.peak - self.held.sum()
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
) -> Result<Rehearsal> {
    let held = Held::of::<A>(config, &Place::new(config, mesh.clone(), rank), &scratch);
    let mut trainer = Trainer::new(Dry::<A>::new(rank, scratch, keep), config.clone(), mesh.clone(), rank);
    // As `state::load_weights` does it, without the host's copies, which may be larger than this machine.
    for shard in &mut trainer.optim.shards {
        shard.master = trainer.b.alloc(shard.range.len(), 1);
    }
    trainer.publish();
    let blank = Blank(config.train.seq_length);
    let mut traffic = BTreeMap::new();
    for _ in 0..steps {
        let before = trainer.b.log().traffic;
        trainer.step(&blank, &mut Clock::start(Phase::Data))?;
        traffic = since(&before, &trainer.b.log().traffic);
    }
    if config.train.eval_interval > 0 {
        trainer.config.train.eval_steps = 1;
        trainer.validate(&blank)?;
    }
    Ok(Rehearsal { usage: trainer.b.usage(), held, traffic, log: trainer.b.log() })
}

fn since(before: &BTreeMap<Kind, Traffic>, after: &BTreeMap<Kind, Traffic>) -> BTreeMap<Kind, Traffic> {
    let part = |(kind, all): (&Kind, &Traffic)| {
        let was = before.get(kind).copied().unwrap_or_default();
        (*kind, Traffic { calls: all.calls - was.calls, bytes: all.bytes - was.bytes })
    };
    after.iter().map(part).collect()
}

/// A configuration that needs as much memory as this one and is sooner rehearsed: a step has no more
/// micro-batches than it takes until each replaces another.
pub fn shortened(config: &Config, mesh: &Mesh) -> Config {
    let (p, mut short) = (&config.parallel, config.clone());
    let together = config.train.micro_batch_size * mesh.size(Axis::Data);
    let most = (2 * p.virtual_pipeline + 1) * p.pipeline;
    short.train.global_batch_size = config.train.global_batch_size.min(most * together);
    short
}

/// The ranks that hold and send the same, the first of each class being the data-parallel rank 0.
pub fn classes(mesh: &Mesh) -> Vec<Vec<usize>> {
    let of_first = (0..mesh.ranks()).filter(|&rank| mesh.coord(rank, Axis::Data) == 0);
    of_first.map(|rank| mesh.group(rank, Axis::Data)).collect()
}

#[cfg(test)]
mod tests;
