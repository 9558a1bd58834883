//! A step of one rank that does not take place: what it would hold of the memory, op by op and byte by
//! byte, and what it would say to the other ranks. The trainer is the one that trains, on the dry backend.

use crate::backend::{Backend, Elem, Scratch};
use crate::batch::Blank;
use crate::clock::{Clock, Phase};
use crate::config::Config;
use crate::dry::{Dry, Keep, Log};
use crate::error::Result;
use crate::ledger::Usage;
use crate::mesh::Mesh;
use crate::state;
use crate::trainer::Trainer;

/// What a rank would do and hold.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    pub usage: Usage,
    pub held: Held,
    pub log: Log,
}

/// What lives for the whole of a forward and backward pass, in bytes of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub weights: usize,
    pub gradients: usize,
    pub optimizer: usize,
}

impl Held {
    pub fn sum(&self) -> usize {
        self.weights + self.gradients + self.optimizer
    }
}

impl Rehearsal {
    /// The rest at the peak: activations, what collectives have under way, scratch.
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
    let b = Dry::<A>::new(rank, scratch, keep);
    let mut trainer = Trainer::new(b, config.clone(), mesh.clone(), rank);
    state::load_weights(&mut trainer, |_, _, _| Ok(()))?;
    trainer.publish();
    let blank = Blank(config.train.seq_length);
    for _ in 0..steps {
        trainer.step(&blank, &mut Clock::start(Phase::Data))?;
    }
    if config.train.eval_interval > 0 {
        trainer.config.train.eval_steps = 1;
        trainer.validate(&blank)?;
    }
    Ok(Rehearsal { usage: trainer.b.usage(), held: held(&trainer), log: trainer.b.log() })
}

fn held<A: Elem>(trainer: &Trainer<Dry<A>>) -> Held {
    let (b, buckets) = (&trainer.b, &trainer.layout.buckets);
    Held {
        weights: buckets.iter().map(|bucket| b.block::<A>(bucket.len)).sum(),
        gradients: buckets.iter().map(|bucket| b.block::<f32>(bucket.len)).sum(),
        optimizer: trainer.optim.shards.iter().map(|shard| 3 * b.block::<f32>(shard.range.len())).sum(),
    }
}

#[cfg(test)]
mod tests;
