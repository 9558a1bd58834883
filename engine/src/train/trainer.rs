//! One step of training, generic over the backend.

use crate::backend::{Acc, AdamW, Backend, Collectives, Fault, Judgement, Rule, Scope, Total};
use crate::batch::{MicroBatch, Samples, Split};
use crate::checkpoint::AcceptedSteps;
use crate::config::{Config, SpikeAction};
use crate::error::{Error, Result};
use crate::layers::region::Region;
use crate::layout::buckets::Span;
use crate::layout::mesh::Mesh;
use crate::layout::rank_layout::RankLayout;
use crate::model::param_specs::TpShard;
use crate::schedule::{self, Action};
use crate::stage::grads::{Grads, Reduce};
use crate::stage::groups::{BucketGroups, Groups};
use crate::stage::params::{ParamLayout, Params};
use crate::stage::{ExpertSharing, Stage, Sums};
use crate::time::Phase;
use crate::train::clock::Clock;
use crate::train::likelihood::{self, Packed, Shape};
use crate::train::lr::learning_rate;
use crate::train::optim::Optim;
use crate::train::pipeline::{self, Channel, PipelineComm, StepAccumulators};
use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

/// The results of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepStats {
    /// Mean over the counted targets of the global batch, without z-loss; 0 where none counts.
    pub loss: f64,
    /// Coefficient times the mean of log(Z)^2.
    pub z_loss: f64,
    /// L2 norm of the gradient of the mean loss, before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Counted targets of the step.
    pub loss_tokens: u64,
    pub judgement: Judgement,
    /// Present if the model has experts.
    pub experts: Option<ExpertStats>,
    /// Whether the step updated nothing.
    pub skipped: bool,
}

/// The experts of a step. Sequences count as a whole, masked targets included.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertStats {
    /// Mean of the balancing loss over the global batch's sequences and the layers with experts, without its
    /// coefficient.
    pub aux_loss: f64,
    /// Mean of log(sum exp)^2 of the router's logits over tokens and layers with experts, without its coefficient.
    pub router_z_loss: f64,
    /// The choices of each expert of each layer of the model, `[L, E]`; zeros in layers without experts.
    pub load: Vec<u64>,
    /// Rounds beyond the first one that layers and micro-batches needed, since their rows did not fit
    /// `parallel.expert_buffer`.
    pub further_rounds: u64,
}

/// The sums of a validation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validated {
    /// Over the counted targets of all ranks.
    pub nats: f64,
    /// This rank's share of the counted targets; the shares of all ranks add up to all targets.
    pub counted: Counted,
}

/// Counted targets. Integers, so that their sum over ranks is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub tokens: u64,
    /// The bytes of text that they stand for; `None` where the tokenizer is unknown.
    pub bytes: Option<u64>,
}

impl Default for Counted {
    fn default() -> Self {
        Counted { tokens: 0, bytes: Some(0) }
    }
}

impl Counted {
    pub fn add(&mut self, other: Counted) {
        self.tokens += other.tokens;
        self.bytes = self.bytes.zip(other.bytes).map(|(a, b)| a + b);
    }
}

/// A step that was enqueued; the copy of its results to the host is in flight.
pub struct PendingStep<B: Backend> {
    /// Its number; the first is 1.
    pub step: u64,
    totals: B::HostCopy<f32>,
    judged: B::HostCopy<f32>,
    /// The load of the experts, and their further rounds.
    experts: Option<[B::HostCopy<f32>; 2]>,
    lr: f64,
}

/// The engine of one rank.
pub struct Trainer<B: Backend> {
    pub config: Config,
    pub b: B,
    pub rank_layout: RankLayout,
    world: B::Group,
    tied: B::Group,
    reduce: Reduce<B>,
    schedule: Vec<Action>,
    comm: PipelineComm<B>,
    pub layout: Rc<ParamLayout>,
    pub(super) stage: Stage<B>,
    pub optim: Optim<B>,
    rule: Rule,
    /// The last accepted steps, by which spikes are judged; see [`Rule::state_len`].
    pub accepted: Acc<B>,
    /// The number of steps done.
    pub step: u64,
}

impl<B: Backend> Trainer<B> {
    /// Creates everything but the weights, which are zeros until they are loaded. All ranks call this together.
    pub fn new(b: B, config: Config, mesh: Mesh, rank: usize) -> Self {
        let rank_layout = RankLayout::new(&config, mesh, rank);
        let groups = Groups::new(&b, &config, &rank_layout);
        Trainer::with_groups(b, groups, config, rank_layout)
    }

    /// Like [`Trainer::new`], but with groups that exist already.
    pub fn with_groups(b: B, groups: Groups<B>, config: Config, rank_layout: RankLayout) -> Self {
        let Groups { tensor, kv, data, activations, gradients, tied, world, optimizer, experts, whole } = groups;
        let layout = ParamLayout::new(&config.model, rank_layout.experts, rank_layout.buckets(&config));
        let reduce = reduce(&config, layout.clone(), kv, data, whole);
        let comm = PipelineComm {
            stage: rank_layout.stage,
            pipe: rank_layout.pipe,
            shape: rank_layout.message_shape(&config),
            activations: Channel::new(activations),
            gradients: Channel::new(gradients),
        };
        let (region, params) =
            (Region::new(tensor, config.parallel.sequence_parallel), Params::new(&b, layout.clone()));
        let stage = Stage::new(&b, &config.model, rank_layout.chunks.clone(), region, params, config.train.seq_length)
            .recompute(config.train.recompute)
            .z_loss(config.train.z_loss as f32)
            .experts(ExpertSharing {
                group: experts,
                buffer: config.parallel.expert_buffer,
                factors: if rank_layout.tp.0 == 0 { balance_factors(&config) } else { [0.0; 2] },
                further_rounds: Cell::new(0),
            });
        let optim = Optim::new(&b, layout.clone(), optimizer, |bucket| rank_layout.owns_shard(bucket));
        let schedule = schedule::train(rank_layout.stage, &rank_layout.pipe);
        let rule = rule(&config);
        let mut accepted = b.alloc(1, Rule::state_len(rule.window));
        b.zero(&mut accepted);
        Trainer {
            config,
            b,
            rank_layout,
            world,
            tied,
            reduce,
            schedule,
            comm,
            layout,
            stage,
            optim,
            rule,
            accepted,
            step: 0,
        }
    }

    /// Casts the main parameters to the model's precision and starts the all-gather of the weights.
    pub fn cast_main_params(&mut self) {
        self.optim.cast_main_params(&self.b, &mut self.stage.params);
    }

    /// Samples of all completed steps.
    pub fn consumed_samples(&self) -> u64 {
        self.step * self.config.train.global_batch_size as u64
    }

    /// The samples that this rank's steps will read, micro-batch by micro-batch, from the next step on.
    pub fn requests(&self) -> impl Iterator<Item = Range<u64>> + Send + 'static {
        let forwards = self.schedule.iter().filter_map(|action| match action {
            Action::Forward(work) => Some(work.mb),
            _ => None,
        });
        let micro_batches: Vec<usize> = forwards.collect();
        let (rank_layout, config) = (self.rank_layout.clone(), self.config.clone());
        (self.step..config.train.steps).flat_map(move |step| {
            let samples = |&mb: &usize| rank_layout.samples(&config, step, mb);
            micro_batches.iter().map(samples).collect::<Vec<_>>()
        })
    }

    /// Runs a step and waits for its results.
    pub fn step(&mut self, data: &dyn Samples, clock: &mut Clock<B>) -> Result<StepStats> {
        let pending = self.start(data, clock)?;
        self.finish(pending)
    }

    /// tokens -> batch -> schedule -> gradients -> shards -> AdamW -> weights. On a device all of it is only
    /// enqueued when this returns.
    pub fn start(&mut self, data: &dyn Samples, clock: &mut Clock<B>) -> Result<PendingStep<B>> {
        let (grads, Sums { totals, load, .. }) = self.gradients(data, clock)?;
        clock.enter(&self.b, Phase::Reduce);
        let shards = grads.wait(&self.b, &self.tied);
        let totals = self.world.all_reduce(&self.b, totals).wait();
        let experts = load.map(|load| {
            [load, self.further_rounds()]
                .map(|sum| self.b.copy_to_host_async(&self.world.all_reduce(&self.b, sum).wait()))
        });
        let lr = learning_rate(&self.config.optimizer, self.config.train.steps, self.step + 1);
        let hp = self.adamw(lr);
        let judged = clock.scope(&self.b, Scope::Optimizer, || {
            let square = self.world.all_reduce(&self.b, self.optim.square(&self.b, &shards)).wait();
            let judged = self.b.judge(&square, &totals, &mut self.accepted, self.rule);
            self.optim.update(&self.b, &mut self.stage.params, shards, &judged, hp);
            self.b.copy_to_host_async(&judged)
        });
        self.step += 1;
        Ok(PendingStep { step: self.step, totals: self.b.copy_to_host_async(&totals), judged, experts, lr })
    }

    /// Waits for the results of a step.
    pub fn finish(&self, pending: PendingStep<B>) -> Result<StepStats> {
        let PendingStep { step, totals, judged, experts, lr } = pending;
        let wait = |copy| self.b.wait_host(copy).map_err(|fault| faulty(step, fault));
        let (totals, judged) = (wait(totals)?, wait(judged)?);
        let experts = match experts {
            Some([load, rounds]) => Some((wait(load)?, wait(rounds)?)),
            None => None,
        };
        let total = |column: Total| totals[column as usize];
        // A step without counted targets has no loss: both sums are 0.
        let tokens = f64::max(total(Total::Weight) as f64, 1.0);
        Ok(StepStats {
            loss: total(Total::Loss) as f64 / tokens,
            z_loss: self.config.train.z_loss * total(Total::ZLoss) as f64 / tokens,
            grad_norm: judged[0] as f64,
            judgement: Judgement::of(judged[2]),
            skipped: judged[1].is_nan(),
            lr,
            loss_tokens: total(Total::Weight) as u64,
            experts: experts.map(|(load, rounds)| self.expert_stats(&totals, &load, rounds[0])),
        })
    }

    /// Forward and backward of all micro-batches. The gradients' reductions are in flight afterwards. Also returns this
    /// rank's part of the sums.
    pub fn gradients(&mut self, data: &dyn Samples, clock: &mut Clock<B>) -> Result<(Grads<B>, Sums<B>)> {
        let mut ahead = self.read_ahead(data)?;
        let mut grads = Grads::new(&self.b, self.layout.clone());
        let mut sums = Sums::new(&self.b, &self.config.model, self.targets(&ahead));
        let (rank_layout, config, step) = (&self.rank_layout, &self.config, self.step);
        let batch = |mb| match ahead.pop_front() {
            Some((_, batch)) => Ok(batch),
            None => data.micro_batch(Split::Train, rank_layout.samples(config, step, mb)),
        };
        let step_sums = StepAccumulators { grads: &mut grads, sums: &mut sums, reduce: &self.reduce };
        pipeline::run(&self.b, &self.schedule, &mut self.stage, &mut self.comm, step_sums, clock, batch)?;
        self.count_once_per_tp(&mut sums.totals);
        sums.load.iter_mut().for_each(|load| self.count_once_per_tp(load));
        Ok((grads, sums))
    }

    /// The step's micro-batches in the order in which they are read, if the number of counted targets must be known
    /// before the first backward: auxiliary losses of experts are means over all positions, and the gradients of them
    /// and of the loss are summed together and divided by the number of counted targets.
    fn read_ahead(&self, data: &dyn Samples) -> Result<VecDeque<(usize, MicroBatch)>> {
        if balance_factors(&self.config) == [0.0; 2] {
            return Ok(VecDeque::new());
        }
        let read = |action: &Action| match action {
            Action::Forward(work) => Some(work.mb),
            _ => None,
        };
        let samples = |mb| self.rank_layout.samples(&self.config, self.step, mb);
        let batch = |mb| Ok((mb, data.micro_batch(Split::Train, samples(mb))?));
        self.schedule.iter().filter_map(read).map(batch).collect()
    }

    /// The number of counted targets of the step over all ranks, `[1, 1]`, from the micro-batches of this one.
    fn targets(&self, ahead: &VecDeque<(usize, MicroBatch)>) -> Acc<B> {
        let mut counted = 0;
        let mut seen = BTreeSet::new();
        for (mb, batch) in ahead {
            // With several chunks of layers, a stage reads each micro-batch several times.
            counted += if seen.insert(*mb) { batch.counted() } else { 0 };
        }
        // The tensor-parallel ranks and the stages of a replica read the same samples; one of them counts.
        let counts = (self.rank_layout.tp.0, self.rank_layout.stage) == (0, 0);
        let counted = self.b.upload(&[if counts { counted as f32 } else { 0.0 }], 1, 1);
        if ahead.is_empty() { counted } else { self.world.all_reduce(&self.b, counted).wait() }
    }

    /// The further rounds of this step, `[1, 1]`, on one of the ranks that made them together.
    fn further_rounds(&self) -> Acc<B> {
        let counts = (self.rank_layout.tp.0, self.rank_layout.experts.rank) == (0, 0);
        let rounds = self.stage.take_further_rounds();
        self.b.upload(&[if counts { rounds as f32 } else { 0.0 }], 1, 1)
    }

    fn expert_stats(&self, totals: &[f32], load: &[f32], rounds: f32) -> ExpertStats {
        let [sequences, tokens] = balanced_over(&self.config);
        ExpertStats {
            aux_loss: totals[Total::AuxLoss as usize] as f64 / sequences,
            router_z_loss: totals[Total::RouterZLoss as usize] as f64 / tokens,
            load: load.iter().map(|&n| n as u64).collect(),
            further_rounds: rounds as u64,
        }
    }

    /// The loss over the next `eval_steps` global batches of the validation set of this index.
    pub fn validate(&mut self, data: &dyn Samples, set: usize) -> Result<Validated> {
        let (mut totals, split) = (zeros(&self.b), Split::Valid(set));
        let schedule = schedule::forward_only(self.rank_layout.stage, &self.rank_layout.pipe);
        // Each validation takes the next batches of the set, as Megatron-LM's does.
        let validations_before = self.step.saturating_sub(1) / self.config.train.eval_interval;
        let first = validations_before * self.config.train.eval_steps;
        let mut counted = Counted::default();
        for batch in first..first + self.config.train.eval_steps {
            let (rank_layout, config) = (&self.rank_layout, &self.config);
            let mut read = BTreeSet::new();
            let batch = |mb| {
                let batch = data.micro_batch(split, rank_layout.samples(config, batch, mb))?;
                // With several chunks of layers, a stage reads each micro-batch several times.
                if read.insert(mb) {
                    counted.add(Counted { tokens: batch.counted(), bytes: data.text_bytes(split, &batch) });
                }
                Ok(batch)
            };
            let b = &self.b;
            let mut add = |_, stats: &Acc<B>, weights: &Acc<B>| b.xent_totals(stats, weights, &mut totals);
            pipeline::evaluate(b, &schedule, &mut self.stage, &mut self.comm, &mut add, batch)?;
        }
        self.count_once_per_tp(&mut totals);
        let totals = self.b.copy_to_host_async(&self.world.all_reduce(&self.b, totals).wait());
        let totals = self.b.wait_host(totals).map_err(|fault| faulty(self.step, fault))?;
        // The tensor-parallel ranks and the stages of a replica read the same samples; one of them counts.
        let counts = (self.rank_layout.tp.0, self.rank_layout.stage) == (0, 0);
        let counted = if counts { counted } else { Counted::default() };
        Ok(Validated { nats: totals[Total::Loss as usize] as f64, counted })
    }

    /// The log-likelihood of each text in nats, on the last stage; nothing on the others. The ranks that share experts
    /// have the same number of micro-batches, of the shape that [`shape`] says.
    pub fn log_likelihoods(&mut self, packed: &Packed) -> Result<Vec<f64>> {
        likelihood::log_likelihoods(&self.b, &mut self.stage, &mut self.comm, packed, || ())
    }

    /// All tensor-parallel ranks have the totals of the same rows, so that only those of the first rank are summed.
    fn count_once_per_tp(&self, totals: &mut Acc<B>) {
        if self.rank_layout.tp.0 > 0 {
            self.b.zero(totals);
        }
    }

    /// Waits for the reductions of gradients that nobody needs.
    pub(super) fn drop_gradients(&self, grads: Grads<B>) {
        grads.wait(&self.b, &self.tied);
    }

    /// The last accepted steps, by which spikes are judged. Blocks until the steps enqueued so far are done.
    pub fn accepted_steps(&self) -> Result<AcceptedSteps> {
        let copy = self.b.copy_to_host_async(&self.accepted);
        let state = self.b.wait_host(copy).map_err(|fault| faulty(self.step, fault))?;
        let (window, held, next) = (self.rule.window, state[0] as usize, state[1] as usize);
        // The oldest one is where the next one goes, once the window is full.
        let oldest = if held == window { next } else { 0 };
        let series = |from: usize| (0..held).map(|i| state[from + (oldest + i) % window]).collect();
        Ok(AcceptedSteps { losses: series(2), grad_norms: series(2 + window) })
    }

    /// Judges by these steps from now on; those that the window does not hold are the oldest.
    pub fn set_accepted_steps(&mut self, steps: &AcceptedSteps) {
        let window = self.rule.window;
        let held = steps.losses.len().min(window);
        let mut state = vec![0.0; Rule::state_len(window)];
        (state[0], state[1]) = (held as f32, (held % window) as f32);
        for (series, from) in [(&steps.losses, 2), (&steps.grad_norms, 2 + window)] {
            state[from..from + held].copy_from_slice(&series[series.len() - held..]);
        }
        self.b.write(&state, &mut self.accepted);
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

/// The shape of a run's micro-batches.
pub fn shape(config: &Config) -> Shape {
    Shape { sequences: config.train.micro_batch_size, seq: config.train.seq_length }
}

/// The sequences and the tokens of a step, each counted once for each layer with experts.
fn balanced_over(config: &Config) -> [f64; 2] {
    let sequences = (config.train.global_batch_size * config.model.expert_layers().count()) as f64;
    [sequences, sequences * config.train.seq_length as f64]
}

/// See [`Balance::factors`](crate::backend::Balance::factors).
fn balance_factors(config: &Config) -> [f32; 2] {
    let coefficients = [config.model.router_aux_loss_coef, config.model.router_z_loss_coef];
    let [aux, z] = std::array::from_fn(|i| coefficients[i] / balanced_over(config)[i].max(1.0));
    [aux as f32, z as f32]
}

/// The rule by which the configuration judges steps.
fn rule(config: &Config) -> Rule {
    let spike = &config.spike;
    Rule {
        clip: config.optimizer.clip_grad as f32,
        window: spike.window as usize,
        threshold: spike.threshold as f32,
        skips: spike.action == SpikeAction::Skip,
    }
}

/// How the gradients are summed. A rank has the gradients of its own heads' norms only, and those of routers from its
/// own columns of the experts; under sequence parallelism it has those of its own rows for what all ranks apply to
/// their rows: norms, and biases after a region.
fn reduce<B: Backend>(
    config: &Config,
    layout: Rc<ParamLayout>,
    kv: B::Group,
    data: BucketGroups<B>,
    whole: Option<B::Group>,
) -> Reduce<B> {
    let reduce = match config.parallel.distributed_optimizer {
        true => Reduce::scatter(layout, data),
        false => Reduce::all(layout, data),
    };
    let reduce = reduce.precision(config.parallel.gradient_precision);
    let reduce = reduce.replicas(kv, |span| matches!(span.tensor.tp_shard, TpShard::Heads(_)));
    let of_rows = config.parallel.sequence_parallel;
    let partial = |span: &Span| match span.tensor.tp_shard {
        TpShard::Partial => true,
        TpShard::Whole => of_rows,
        TpShard::Rows | TpShard::Cols | TpShard::Heads(_) => false,
    };
    match whole {
        Some(ranks) => reduce.replicas(ranks, partial),
        None => reduce,
    }
}

fn faulty(step: u64, fault: Fault) -> Error {
    Error::run(format!("step {step}: {fault}"))
}

fn zeros<B: Backend>(b: &B) -> Acc<B> {
    let mut totals = b.alloc(1, Total::COUNT);
    b.zero(&mut totals);
    totals
}
