//! One step of training, generic over the backend.

use crate::backend::{Acc, AdamW, Backend, Collectives, Fault, Part};
use crate::batch::{Samples, Split};
use crate::buckets::Span;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::grads::{Grads, Reduce};
use crate::groups::Groups;
use crate::inventory::Cut;
use crate::layers::region::Region;
use crate::lr::learning_rate;
use crate::mesh::Mesh;
use crate::optim::{Duty, Optim};
use crate::params::{Layout, Params};
use crate::phase::Phase;
use crate::pipeline::{self, Line, Sums, Wires};
use crate::place::Place;
use crate::schedule::{self, Action};
use crate::stage::Stage;
use std::ops::Range;
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

/// A step that was enqueued: what it will show, once the backend is done with it.
pub struct UnderWay<B: Backend> {
    /// Its number; the first is 1.
    pub step: u64,
    totals: B::Fetch<f32>,
    norm: B::Fetch<f32>,
    lr: f64,
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
        let groups = Groups::new(&b, &config, &place);
        Trainer::of(b, groups, config, place)
    }

    /// As `new`, with groups that are there already.
    pub fn of(b: B, groups: Groups<B>, config: Config, place: Place) -> Self {
        let Groups { tensor, kv, data, activations, gradients, tied, world, optimizer, norms } = groups;
        let layout = Layout::new(place.buckets(&config), config.model.tie_word_embeddings);
        let reduce = reduce(&config, &layout, kv, data, norms);
        let wires = Wires {
            stage: place.stage,
            pipe: place.pipe,
            shape: place.travelling(&config),
            activations: Line::new(activations),
            gradients: Line::new(gradients),
        };
        let (region, params) =
            (Region::new(tensor, config.parallel.sequence_parallel), Params::new(&b, layout.clone()));
        let stage = Stage::new(&b, &config.model, place.chunks.clone(), region, params, config.train.seq_length)
            .recompute(config.train.recompute)
            .z_loss(config.train.z_loss as f32);
        let duty = if place.answers(&config) { Duty::Answers } else { Duty::Copies };
        let optim = Optim::new(&b, layout.clone(), optimizer, duty);
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

    /// The samples that this rank's steps will read, micro-batch by micro-batch, from the next step on.
    pub fn requests(&self) -> impl Iterator<Item = Range<u64>> + Send + 'static {
        let forwards = self.plan.iter().filter_map(|action| match action {
            Action::Forward(work) => Some(work.mb),
            _ => None,
        });
        let (order, place, config): (Vec<usize>, _, _) = (forwards.collect(), self.place.clone(), self.config.clone());
        let per_step = config.train.global_batch_size as u64;
        (self.step..config.train.steps).flat_map(move |step| {
            let samples = |&mb: &usize| place.samples(&config, step * per_step, mb);
            order.iter().map(samples).collect::<Vec<_>>()
        })
    }

    /// A step and what it showed.
    pub fn step(&mut self, data: &dyn Samples, clock: &mut Clock<B>) -> Result<Report> {
        let under_way = self.start(data, clock)?;
        self.report(under_way)
    }

    /// tokens -> batch -> schedule -> gradients -> shards -> AdamW -> weights. On a device all of it is only
    /// enqueued when this returns.
    pub fn start(&mut self, data: &dyn Samples, clock: &mut Clock<B>) -> Result<UnderWay<B>> {
        let (grads, totals) = self.gradients(data, clock)?;
        clock.enter(&self.b, Phase::Reduce);
        let shards = grads.wait(&self.b, &self.tied);
        let totals = self.world.all_reduce(&self.b, totals).wait();
        clock.enter(&self.b, Phase::Optimizer);
        let lr = learning_rate(&self.config.optimizer, self.config.train.steps, self.step + 1);
        let hp = self.adamw(lr);
        let norm = self.b.within(Part::Optimizer, || {
            let square = self.world.all_reduce(&self.b, self.optim.square(&self.b, &shards)).wait();
            let norm_factor = self.b.clip_factor(&square, &totals, self.config.optimizer.clip_grad as f32);
            self.optim.update(&self.b, &mut self.stage.params, shards, &norm_factor, hp);
            self.b.fetch(&norm_factor)
        });
        self.step += 1;
        Ok(UnderWay { step: self.step, totals: self.b.fetch(&totals), norm, lr })
    }

    /// What a step showed, once it is done.
    pub fn report(&self, under_way: UnderWay<B>) -> Result<Report> {
        let UnderWay { step, totals, norm, lr } = under_way;
        let receive = |fetch| self.b.receive(fetch).map_err(|fault| faulty(step, fault));
        let (totals, norm) = (receive(totals)?, receive(norm)?);
        let tokens = totals[2] as f64;
        Ok(Report {
            loss: totals[0] as f64 / tokens,
            z_loss: self.config.train.z_loss * totals[1] as f64 / tokens,
            grad_norm: norm[0] as f64,
            lr,
            tokens: totals[2] as u64,
        })
    }

    /// All micro-batches forth and back; the sums of the gradients are left under way.
    /// With them this rank's part of the totals of the loss, `[1, 3]`.
    pub fn gradients(&mut self, data: &dyn Samples, clock: &mut Clock<B>) -> Result<(Grads<B>, Acc<B>)> {
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
        let totals = self.b.fetch(&self.world.all_reduce(&self.b, totals).wait());
        let totals = self.b.receive(totals).map_err(|fault| faulty(self.step, fault))?;
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
}

/// How gradients are summed. Norm weights saw only this rank's rows under sequence parallelism.
fn reduce<B: Backend>(
    config: &Config,
    layout: &Layout,
    kv: B::Group,
    data: B::Group,
    norms: Option<B::Group>,
) -> Reduce<B> {
    let reduce = match config.parallel.distributed_optimizer {
        true => Reduce::scatter(data),
        false => Reduce::all(data),
    };
    let reduce = reduce.precision(config.parallel.gradient_precision);
    let heads = |span: &Span| matches!(span.tensor.cut, Cut::Heads(_));
    let reduce = reduce.copies(layout, kv, heads);
    match norms {
        Some(norms) => reduce.copies(layout, norms, |span| span.tensor.cut == Cut::Whole),
        None => reduce,
    }
}

fn faulty(step: u64, fault: Fault) -> Error {
    Error::run(format!("step {step}: {fault}"))
}

fn zeros<B: Backend>(b: &B) -> Acc<B> {
    let mut totals = b.alloc(1, 3);
    b.zero(&mut totals);
    totals
}
