//! Trains one layout from the initial weights to the last step, and collects the results to compare.

use super::compare::{self, Outcome, Reference, Run};
use crate::batch::Samples;
use crate::checkpoint::HuggingFace;
use crate::config::{Config, Load};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::model::init;
use crate::mpi::Comm;
use crate::time::Phase;
use crate::train::clock::Clock;
use crate::train::state;
use crate::train::trainer::Trainer;
use std::rc::Rc;

type Cpu32 = Cpu<f32>;

/// The one-rank run: the master weights before it, and the run itself.
pub fn single_rank(config: &Config, data: &dyn Samples) -> Result<(Vec<f32>, Run)> {
    let mut trainer = trainer(Cpu::new(1), config, 1, 0)?;
    let before = masters(&trainer);
    Ok((before, train(&mut trainer, data)?))
}

/// Trains on all ranks of `comm` and compares. The outcome is the same on every rank. Collective.
pub fn train_and_compare(comm: &Comm, config: &Config, data: &dyn Samples, reference: &Reference) -> Result<Outcome> {
    // A duplicate communicator, which is dropped with the trainer.
    let ranks = Rc::new(comm.split(0, comm.rank()));
    let mut trainer = trainer(Cpu::of(ranks, 1), config, comm.size(), comm.rank())?;
    let run = train(&mut trainer, data)?;
    let runs: Vec<Run> = comm.all_gather_bytes(&run.to_bytes()).iter().map(|bytes| Run::from_bytes(bytes)).collect();
    Ok(compare::outcome(config, &trainer.rank_layout.mesh, &runs, reference))
}

fn trainer(b: Cpu32, config: &Config, ranks: usize, rank: usize) -> Result<Trainer<Cpu32>> {
    let mut trainer = Trainer::new(b, config.clone(), config.mesh(ranks)?, rank);
    match &config.train.load {
        Load::Random => state::load_weights(&mut trainer, |tensor, rect, out| {
            init::fill(&config.model, config.train.seed, tensor, rect, out);
            Ok(())
        })?,
        Load::HuggingFace(from) => {
            let weights = HuggingFace::open(from, &config.model)?;
            state::load_weights(&mut trainer, |tensor, rect, out| weights.read_parameter(tensor, rect, out))?;
        }
    }
    trainer.cast_main_params();
    Ok(trainer)
}

fn train(trainer: &mut Trainer<Cpu32>, data: &dyn Samples) -> Result<Run> {
    let mut steps = Vec::new();
    for _ in 0..trainer.config.train.steps {
        let mut clock = Clock::start(&trainer.b, Phase::Data);
        let report = trainer.step(data, &mut clock)?;
        steps.push([report.loss, report.grad_norm]);
    }
    Ok(Run { steps, masters: masters(trainer) })
}

/// This rank's master weights, bucket after bucket.
fn masters(trainer: &Trainer<Cpu32>) -> Vec<f32> {
    trainer.optim.shards.iter().flat_map(|shard| trainer.b.download(&shard.state[0].1)).collect()
}
