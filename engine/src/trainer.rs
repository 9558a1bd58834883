//! One step of training, generic over the backend.

use crate::backend::{AdamW, Backend, Collectives, Tensor};
use crate::buckets;
use crate::clock::{Clock, Phase};
use crate::config::{Axis, Config};
use crate::data::feed::{Feed, Split};
use crate::error::{Error, Result};
use crate::grads::{Grads, Reduce};
use crate::inventory;
use crate::layers::region::Region;
use crate::lr::learning_rate;
use crate::mesh::Mesh;
use crate::mpi::Comm;
use crate::optim::Optim;
use crate::params::{Layout, Params};
use crate::pipeline::{self, Sums};
use crate::schedule::{self, Action};
use crate::stage::{DeviceBatch, Stage};
use std::ops::Range;
use std::rc::Rc;

/// A bucket below this many elements takes in the next slot too: small messages waste the network.
const MIN_BUCKET: usize = 1 << 24;

/// What a step showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Mean over the tokens of the global batch, without z-loss.
    pub loss: f64,
    /// Coefficient times the mean of log(Z)^2.
    pub z_loss: f64,
    /// Of the mean's gradient, before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Unmasked tokens of the step.
    pub tokens: u64,
}

/// The engine of one rank.
pub struct Trainer<B: Backend> {
    pub config: Config,
    pub b: B,
    mesh: Mesh,
    dp: B::Group,
    dp_rank: usize,
    plan: Vec<Action>,
    pub layout: Rc<Layout>,
    stage: Stage<B>,
    pub optim: Optim<B>,
    feed: Feed,
    /// Steps done.
    pub step: u64,
}

impl<B: Backend> Trainer<B> {
    /// Everything but the weights, which are zeros until they are loaded. All ranks call it together.
    pub fn new(b: B, config: Config, feed: Feed, world: &Comm) -> Result<Self> {
        let mesh = config.mesh(world.size())?;
        let axis = |axis| world.split(mesh.group(world.rank(), axis)[0], mesh.coord(world.rank(), axis));
        let (tp, dp) = (axis(Axis::Tensor), axis(Axis::Data));
        let optim_group =
            if config.parallel.distributed_optimizer { dp.split(0, dp.rank()) } else { dp.split(dp.rank(), 0) };
        let slots = inventory::slots(&config.model);
        let specs: Vec<_> = slots.iter().map(|&slot| (slot, inventory::tensors(&config.model, slot))).collect();
        let buckets = buckets::plan(&specs, (tp.rank(), tp.size()), optim_group.size(), MIN_BUCKET);
        let layout = Layout::new(buckets, config.model.tie_word_embeddings);

        let stages = mesh.size(Axis::Pipeline);
        let plan =
            schedule::one_f_one_b(mesh.coord(world.rank(), Axis::Pipeline), stages, micro_batches(&config, &mesh));
        let region = Region::new(b.group(tp), config.parallel.sequence_parallel);
        let params = Params::absent(layout.clone());
        let stage = Stage::new(&b, &config.model, slots, region, params, config.train.seq_length)
            .recompute(config.train.recompute)
            .z_loss(config.train.z_loss as f32);
        let optim = Optim::new(&b, layout.clone(), b.group(optim_group));
        let dp = b.group(dp);
        Ok(Trainer { dp_rank: dp.rank(), dp, plan, layout, stage, optim, feed, step: 0, mesh, b, config })
    }

    /// The masters were loaded: makes the weights of them.
    pub fn publish(&mut self) {
        self.optim.publish(&self.b, &mut self.stage.params);
    }

    /// Place among the data-parallel ranks.
    pub fn dp_rank(&self) -> usize {
        self.dp_rank
    }

    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Samples of all steps done.
    pub fn consumed_samples(&self) -> u64 {
        self.step * self.config.train.global_batch_size as u64
    }

    /// tokens -> batch -> schedule -> gradients -> shards -> AdamW -> weights.
    pub fn step(&mut self, clock: &mut Clock) -> Result<Report> {
        let (grads, totals) = self.gradients(clock)?;
        clock.enter(Phase::Reduce);
        let shards = grads.wait();
        let totals = self.dp.all_reduce(&self.b, totals).wait();
        clock.enter(Phase::Optimizer);
        let square = self.optim.square(&self.b, &shards);
        let norm_factor = self.b.clip_factor(&square, &totals, self.config.optimizer.clip_grad as f32);
        let lr = learning_rate(&self.config.optimizer, self.config.train.steps, self.step + 1);
        let hp = self.adamw(lr);
        self.optim.update(&self.b, &mut self.stage.params, shards, &norm_factor, hp);
        self.step += 1;
        self.b.check().map_err(|fault| Error::run(format!("step {}: {fault}", self.step)))?;
        Ok(self.report(&self.b.download(&totals), self.b.download(&norm_factor)[0], lr))
    }

    /// All micro-batches forth and back; the sums of the gradients are left under way.
    /// With them the totals of the loss `[1, 3]` of this rank.
    pub fn gradients(&mut self, clock: &mut Clock) -> Result<(Grads<B>, Tensor<B, f32>)> {
        let mut grads = Grads::new(&self.b, self.layout.clone());
        let mut totals = zeros(&self.b);
        let reduce = match self.config.parallel.distributed_optimizer {
            true => Reduce::Scatter(&self.dp),
            false => Reduce::All(&self.dp),
        };
        let (b, feed, config) = (&self.b, &self.feed, &self.config);
        let first = self.step * config.train.global_batch_size as u64;
        let (dp, dp_rank) = (self.mesh.size(Axis::Data), self.dp_rank);
        let batch = |mb| {
            let host = feed.micro_batch(Split::Train, samples(config, first, mb, dp, dp_rank))?;
            Ok(DeviceBatch::upload(b, &host, config.train.seq_length))
        };
        let sums = Sums { grads: &mut grads, totals: &mut totals, reduce };
        pipeline::run(b, &self.plan, &mut self.stage, sums, clock, batch)?;
        Ok((grads, totals))
    }

    /// Mean loss over `eval_steps` global batches of the validation set.
    pub fn validate(&mut self) -> Result<f64> {
        let mut totals = zeros(&self.b);
        let (dp, per_batch) = (self.mesh.size(Axis::Data), self.config.train.global_batch_size as u64);
        // Each validation takes the next batches of the split, as Megatron-LM's does.
        let validations_before = self.step.saturating_sub(1) / self.config.train.eval_interval;
        let first = validations_before * self.config.train.eval_steps * per_batch;
        for step in 0..self.config.train.eval_steps {
            for mb in 0..micro_batches(&self.config, &self.mesh) {
                let samples = samples(&self.config, first + step * per_batch, mb, dp, self.dp_rank);
                let host = self.feed.micro_batch(Split::Valid, samples)?;
                let batch = DeviceBatch::upload(&self.b, &host, self.config.train.seq_length);
                self.stage.evaluate(&self.b, &batch, None, &mut totals);
            }
        }
        let totals = self.b.download(&self.dp.all_reduce(&self.b, totals).wait());
        Ok(totals[0] as f64 / totals[2] as f64)
    }

    fn adamw(&self, lr: f64) -> AdamW {
        let (o, t) = (&self.config.optimizer, (self.step + 1) as f64);
        AdamW {
            lr: lr as f32,
            beta1: o.betas[0],
            beta2: o.betas[1],
            eps: o.eps as f32,
            weight_decay: o.weight_decay as f32,
            correction1: (1.0 - o.betas[0].powf(t)) as f32,
            correction2: (1.0 - o.betas[1].powf(t)) as f32,
            decayed: 0,
        }
    }

    fn report(&self, totals: &[f32], grad_norm: f32, lr: f64) -> Report {
        let tokens = totals[2] as f64;
        Report {
            loss: totals[0] as f64 / tokens,
            z_loss: self.config.train.z_loss * totals[1] as f64 / tokens,
            grad_norm: grad_norm as f64,
            lr,
            tokens: totals[2] as u64,
        }
    }
}

/// Micro-batches of a step on each rank.
fn micro_batches(config: &Config, mesh: &Mesh) -> usize {
    config.train.global_batch_size / (config.train.micro_batch_size * mesh.size(Axis::Data))
}

/// The samples of micro-batch `mb` of data-parallel rank `rank`, in a step that starts at sample
/// `first`: groups of micro_batch_size x ranks, rank after rank, as Megatron-LM deals them.
fn samples(config: &Config, first: u64, mb: usize, ranks: usize, rank: usize) -> Range<u64> {
    let size = config.train.micro_batch_size as u64;
    let start = first + (mb * ranks + rank) as u64 * size;
    start..start + size
}

fn zeros<B: Backend>(b: &B) -> Tensor<B, f32> {
    let mut totals = b.alloc(1, 3);
    b.zero(&mut totals);
    totals
}
