//! One step of training, generic over the backend.

use crate::backend::{Acc, AdamW, Backend, Collectives};
use crate::batch::{Samples, Split};
use crate::buckets::Span;
use crate::clock::{Clock, Phase};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grads::{Grads, Reduce};
use crate::inventory::Cut;
use crate::layers::region::Region;
use crate::lr::learning_rate;
use crate::mesh::{Kind, Mesh};
use crate::optim::{Duty, Optim};
use crate::params::{Layout, Params};
use crate::pipeline::{self, Line, Sums, Wires};
use crate::place::Place;
use crate::schedule::{self, Action};
use crate::stage::Stage;
use std::rc::Rc;

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
    pub place: Place,
    world: B::Group,
    tied: B::Group,
    reduce: Reduce<B>,
    plan: Vec<Action>,
    wires: Wires<B>,
    pub layout: Rc<Layout>,
    stage: Stage<B>,
    pub optim: Optim<B>,
    /// Steps done.
    pub step: u64,
}

impl<B: Backend> Trainer<B> {
    /// Everything but the weights, which are zeros until they are loaded. All ranks call it together.
    pub fn new(b: B, config: Config, mesh: Mesh, rank: usize) -> Self {
        let place = Place::new(&config, mesh, rank);
        let group = |kind| b.group(kind, &place.members(kind));
        // In one order on all ranks: making a group takes all of them.
        let [tp, kv, data] = [Kind::Tensor, Kind::KvHeads, Kind::Data].map(group);
        let [forth, back, tied, world] = [Kind::Activations, Kind::Gradients, Kind::Tied, Kind::World].map(group);
        let shards = b.group(Kind::Optimizer, &place.optimizer_members(&config));

        let layout = Layout::new(place.buckets(&config), config.model.tie_word_embeddings);
        let reduce = reduce(&config, &b, &place, &layout, kv, data);
        let wires = Wires {
            stage: place.stage,
            pipe: place.pipe,
            shape: place.travelling(&config),
            activations: Line::new(forth),
            gradients: Line::new(back),
        };
        let (region, params) = (Region::new(tp, config.parallel.sequence_parallel), Params::new(&b, layout.clone()));
        let stage = Stage::new(&b, &config.model, place.chunks.clone(), region, params, config.train.seq_length)
            .recompute(config.train.recompute)
            .z_loss(config.train.z_loss as f32);
        let duty = if place.answers(&config) { Duty::Answers } else { Duty::Copies };
        let optim = Optim::new(&b, layout.clone(), shards, duty);
        let plan = schedule::train(place.stage, &place.pipe);
        Trainer { config, b, place, world, tied, reduce, plan, wires, layout, stage, optim, step: 0 }
    }

    /// The masters were loaded: makes the weights of them.
    pub fn publish(&mut self) {
        self.optim.publish(&self.b, &mut self.stage.params);
    }

    /// Samples of all steps done.
    pub fn consumed_samples(&self) -> u64 {
        self.step * self.config.train.global_batch_size as u64
    }

    /// tokens -> batch -> schedule -> gradients -> shards -> AdamW -> weights.
    pub fn step(&mut self, data: &dyn Samples, clock: &mut Clock) -> Result<Report> {
        let (grads, totals) = self.gradients(data, clock)?;
        clock.enter(Phase::Reduce);
        let shards = grads.wait(&self.b, &self.tied);
        let totals = self.world.all_reduce(&self.b, totals).wait();
        clock.enter(Phase::Optimizer);
        let square = self.world.all_reduce(&self.b, self.optim.square(&self.b, &shards)).wait();
        let norm_factor = self.b.clip_factor(&square, &totals, self.config.optimizer.clip_grad as f32);
        let lr = learning_rate(&self.config.optimizer, self.config.train.steps, self.step + 1);
        let hp = self.adamw(lr);
        self.optim.update(&self.b, &mut self.stage.params, shards, &norm_factor, hp);
        self.step += 1;
        self.b.check().map_err(|fault| Error::run(format!("step {}: {fault}", self.step)))?;
        Ok(self.report(&self.b.download(&totals), self.b.download(&norm_factor)[0], lr))
    }

    /// All micro-batches forth and back; the sums of the gradients are left under way.
    /// With them this rank's part of the totals of the loss, `[1, 3]`.
    pub fn gradients(&mut self, data: &dyn Samples, clock: &mut Clock) -> Result<(Grads<B>, Acc<B>)> {
        let mut grads = Grads::new(&self.b, self.layout.clone());
        let mut totals = zeros(&self.b);
        let (place, config) = (&self.place, &self.config);
        let first = self.step * config.train.global_batch_size as u64;
        let batch = |mb| data.micro_batch(Split::Train, place.samples(config, first, mb));
        let sums = Sums { grads: &mut grads, totals: &mut totals, reduce: &self.reduce };
        pipeline::run(&self.b, &self.plan, &mut self.stage, &mut self.wires, sums, clock, batch)?;
        self.once(&mut totals);
        Ok((grads, totals))
    }

    /// Mean loss over `eval_steps` global batches of the validation set.
    pub fn validate(&mut self, data: &dyn Samples) -> Result<f64> {
        let mut totals = zeros(&self.b);
        let plan = schedule::forward_only(self.place.stage, &self.place.pipe);
        let t = &self.config.train;
        let per_batch = t.global_batch_size as u64;
        // Each validation takes the next batches of the split, as Megatron-LM's does.
        let validations_before = self.step.saturating_sub(1) / t.eval_interval;
        let first = validations_before * t.eval_steps * per_batch;
        for step in 0..t.eval_steps {
            let (place, config) = (&self.place, &self.config);
            let batch = |mb| data.micro_batch(Split::Valid, place.samples(config, first + step * per_batch, mb));
            pipeline::evaluate(&self.b, &plan, &mut self.stage, &mut self.wires, &mut totals, batch)?;
        }
        self.once(&mut totals);
        let totals = self.b.download(&self.world.all_reduce(&self.b, totals).wait());
        Ok(totals[0] as f64 / totals[2] as f64)
    }

    /// The tensor-parallel ranks all have the totals of the same rows: the first one's count.
    fn once(&self, totals: &mut Acc<B>) {
        if self.place.tp.0 > 0 {
            self.b.zero(totals);
        }
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

/// How gradients are summed. Norm weights saw only this rank's rows under sequence parallelism.
fn reduce<B: Backend>(
    config: &Config,
    b: &B,
    place: &Place,
    layout: &Layout,
    kv: B::Group,
    data: B::Group,
) -> Reduce<B> {
    let reduce = match config.parallel.distributed_optimizer {
        true => Reduce::scatter(data),
        false => Reduce::all(data),
    };
    let heads = |span: &Span| matches!(span.tensor.cut, Cut::Heads(_));
    let reduce = reduce.copies(layout, kv, heads);
    if !config.parallel.sequence_parallel {
        return reduce;
    }
    let norms = b.group(Kind::Tensor, &place.members(Kind::Tensor));
    reduce.copies(layout, norms, |span| span.tensor.cut == Cut::Whole)
}

fn zeros<B: Backend>(b: &B) -> Acc<B> {
    let mut totals = b.alloc(1, 3);
    b.zero(&mut totals);
    totals
}
