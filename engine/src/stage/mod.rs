//! One pipeline stage: forward and backward of a micro-batch through this rank's layers, and the tensors kept in
//! between.

use crate::backend::{Acc, Act, Backend, Balance, Collectives, Heads, Rotary, Router, Scope, Tensor, Total};
use crate::batch::MicroBatch;
use crate::config::{AttentionKind, Model, Recompute};
use crate::layers::attention::Pattern;
use crate::layers::region::Region;
use crate::layers::{Ctx, block, embedding, head, moe, norm, rope};
use crate::model::param_specs::{self, TensorSpec, Unit, share};
use crate::stage::grads::{Grads, Reduce};
use crate::stage::params::Params;
use std::cell::Cell;
use std::collections::VecDeque;

pub mod cache;
pub mod grads;
pub mod groups;
pub mod params;

/// The parts of a micro-batch that a chunk reads, in the backend's memory.
pub struct DeviceBatch<B: Backend> {
    /// The first position that each row attends to, for each kind of attention of the chunk's layers.
    starts: Vec<(AttentionKind, Tensor<B, u32>)>,
    positions: Tensor<B, u32>,
    /// The token ids, for the embedding.
    ids: Option<Tensor<B, u32>>,
    /// For the head.
    targets: Option<DeviceTargets<B>>,
    /// Rows of one sequence.
    seq: usize,
}

/// [`head::Targets`] in the backend's memory.
struct DeviceTargets<B: Backend> {
    rows: Tensor<B, u32>,
    places: Tensor<B, u32>,
    ids: Tensor<B, u32>,
    weights: Acc<B>,
    counted: usize,
}

impl<B: Backend> DeviceTargets<B> {
    /// Sorts the targets: those that count first.
    fn upload(b: &B, host: &MicroBatch) -> Self {
        let all = host.ids.len();
        let (mut rows, others): (Vec<u32>, Vec<u32>) =
            (0..all as u32).partition(|&row| host.weights[row as usize] != 0.0);
        let counted = rows.len();
        let mut places = vec![all as u32; all];
        rows.iter().zip(0..).for_each(|(&row, place)| places[row as usize] = place);
        rows.extend(others);
        let ids: Vec<u32> = rows.iter().map(|&row| host.targets[row as usize]).collect();
        let weights: Vec<f32> = rows.iter().map(|&row| host.weights[row as usize]).collect();
        DeviceTargets {
            rows: b.upload(&rows, all, 1),
            places: b.upload(&places, all, 1),
            ids: b.upload(&ids, all, 1),
            weights: b.upload(&weights, all, 1),
            counted,
        }
    }
}

impl<B: Backend> DeviceBatch<B> {
    /// Uploads the parts of a micro-batch that the chunk reads. A device reads the tables of positions without a check,
    /// so positions are checked here.
    fn upload(b: &B, host: &MicroBatch, chunk: &Chunk<B>, shared: &Shared<B>) -> Self {
        let (rows, seq) = (host.ids.len(), host.seq);
        assert_eq!(rows % seq, 0, "{rows} rows in sequences of {seq}");
        let positions = shared.model.learned_positions().map(|_| since_start(host));
        let positions = positions.as_ref().unwrap_or(&host.positions);
        let last = positions.iter().max().map_or(0, |&position| position as usize);
        assert!(last < shared.positions, "position {last} in a table of {} rows", shared.positions);
        let (embeds, heads) = (chunk.units.contains(&Unit::Embedding), chunk.units.contains(&Unit::Head));
        let starts = |&kind: &AttentionKind| (kind, b.upload(&first_seen(host, kind), rows, 1));
        DeviceBatch {
            starts: chunk.kinds.iter().map(starts).collect(),
            positions: b.upload(positions, rows, 1),
            ids: embeds.then(|| b.upload(&host.ids, rows, 1)),
            targets: heads.then(|| DeviceTargets::upload(b, host)),
            seq,
        }
    }

    fn starts(&self, kind: AttentionKind) -> &Tensor<B, u32> {
        let found = self.starts.iter().find(|(of, _)| *of == kind);
        &found.unwrap_or_else(|| panic!("no layer of the chunk has {kind:?}")).1
    }

    fn tokens(&self) -> embedding::Tokens<'_, B> {
        let ids = self.ids.as_ref().expect("the chunk of the embedding uploads the ids");
        embedding::Tokens { ids, positions: &self.positions }
    }

    fn targets(&self, z_loss: f32, cap: Option<f32>) -> head::Targets<'_, B> {
        let DeviceTargets { rows, places, ids, weights, counted } =
            self.targets.as_ref().expect("the chunk of the head uploads the targets");
        head::Targets { rows, places, ids, weights, counted: *counted, z_loss, cap }
    }
}

/// The position of each row in its document: learned positions restart where attention does.
fn since_start(host: &MicroBatch) -> Vec<u32> {
    host.starts.iter().enumerate().map(|(row, start)| (row % host.seq) as u32 - start).collect()
}

/// The first position of its sequence that each row attends to: its document's start, or that of the window.
fn first_seen(host: &MicroBatch, kind: AttentionKind) -> Vec<u32> {
    let position = |row: usize| (row % host.seq) as u32;
    host.starts.iter().enumerate().map(|(row, &start)| start.max(kind.first(position(row)))).collect()
}

/// The tensors that a unit's forward keeps for its backward.
// A layer keeps the most, and most units are layers; a box would be allocated in every step.
#[allow(clippy::large_enum_variant)]
enum Kept<B: Backend> {
    /// The embedding: its ids are in the batch.
    Nothing,
    Layer(block::Saved<B>),
    /// A layer's input, if the layer is recomputed (`recompute = "full"`).
    Input(Act<B>),
    /// The head's dx, which was computed together with the loss.
    Gradient(Act<B>),
}

/// The sums that the micro-batches of a step add to, besides gradients.
pub struct Sums<B: Backend> {
    /// `[1, Total::COUNT]`.
    pub totals: Acc<B>,
    /// The choices of each expert in each layer, `[L, E]`, if the model has experts.
    pub load: Option<Acc<B>>,
    /// The number of counted targets of the step over all ranks, `[1, 1]`: what the gradients of auxiliary losses are
    /// multiplied with, since all gradients are divided by it later.
    pub targets: Acc<B>,
}

impl<B: Backend> Sums<B> {
    /// Zeros for a step with this number of counted targets, `[1, 1]`.
    pub fn new(b: &B, model: &Model, targets: Acc<B>) -> Self {
        let zeros = |rows, cols| {
            let mut x = b.alloc(rows, cols);
            b.zero(&mut x);
            x
        };
        let load = (model.experts() > 0).then(|| zeros(model.num_hidden_layers, model.experts()));
        Sums { totals: zeros(1, Total::COUNT), load, targets }
    }
}

/// How the experts are shared, and how their auxiliary losses count.
pub struct ExpertSharing<B: Backend> {
    /// The ranks that share the experts.
    pub group: B::Group,
    /// `parallel.expert_buffer`.
    pub buffer: f64,
    /// See [`Balance::factors`].
    pub factors: [f32; 2],
    /// The rounds beyond the first one of each layer and micro-batch so far.
    pub further_rounds: Cell<u64>,
}

/// One pipeline stage: one chunk of layers, or several with interleaved 1F1B.
pub struct Stage<B: Backend> {
    recompute: Recompute,
    z_loss: f32,
    chunks: Vec<Chunk<B>>,
    shared: Shared<B>,
    pub params: Params<B>,
}

/// The state that all layers and micro-batches share.
struct Shared<B: Backend> {
    model: Model,
    region: Region<B>,
    /// Present if the model has experts.
    experts: Option<ExpertSharing<B>>,
    /// cos and sin by position, `[longest, d]`; none where positions are learned.
    rope: Option<Acc<B>>,
    /// The number of positions that a micro-batch may have.
    positions: usize,
    /// The id of the first vocabulary row that this rank holds.
    vocab_start: usize,
    /// The first learned position that this rank holds.
    positions_start: usize,
}

/// Consecutive units of the model.
struct Chunk<B: Backend> {
    units: Vec<Unit>,
    /// The kinds of attention of its layers, each once.
    kinds: Vec<AttentionKind>,
    /// The micro-batches between forward and backward, oldest first.
    in_flight: VecDeque<(DeviceBatch<B>, Vec<Kept<B>>)>,
}

impl<B: Backend> Stage<B> {
    /// `positions` is the number of rows of the longest sequence that the stage will run.
    pub fn new(
        b: &B,
        model: &Model,
        chunks: Vec<Vec<Unit>>,
        region: Region<B>,
        params: Params<B>,
        positions: usize,
    ) -> Self {
        let rotary = model.learned_positions().is_none();
        let rope = rotary.then(|| b.upload(&rope::table(model, positions), positions, model.head_dim));
        let (rank, ranks) = (region.group().rank(), region.group().size());
        let tables = param_specs::embedding(model);
        let first_row = |table: &Vec<TensorSpec>| table[0].held(rank, ranks).rows.start;
        let (vocab_start, positions_start) = (first_row(&tables.table), tables.positions.as_ref().map_or(0, first_row));
        let shared =
            Shared { model: model.clone(), region, experts: None, rope, positions, vocab_start, positions_start };
        let chunk = |units: Vec<Unit>| Chunk { kinds: kinds(model, &units), units, in_flight: VecDeque::new() };
        let chunks = chunks.into_iter().map(chunk).collect();
        Stage { recompute: Recompute::None, z_loss: 0.0, chunks, shared, params }
    }

    pub fn recompute(self, recompute: Recompute) -> Self {
        Stage { recompute, ..self }
    }

    pub fn z_loss(self, z_loss: f32) -> Self {
        Stage { z_loss, ..self }
    }

    /// Needed if the model has experts.
    pub fn experts(mut self, experts: ExpertSharing<B>) -> Self {
        self.shared.experts = Some(experts);
        self
    }

    /// The rounds beyond the first one of each layer with experts and micro-batch since the last call.
    pub fn take_further_rounds(&self) -> u64 {
        self.shared.experts.as_ref().map_or(0, |sharing| sharing.further_rounds.take())
    }

    /// Uploads the parts of a micro-batch that `chunk` reads.
    pub fn upload(&self, b: &B, chunk: usize, host: &MicroBatch) -> DeviceBatch<B> {
        DeviceBatch::upload(b, host, &self.chunks[chunk], &self.shared)
    }

    /// Forward through the units of a chunk. `x` is the output of the previous chunk, the result is the input of the
    /// next chunk. The head adds the losses to `sums` and its gradients to `grads`.
    pub fn forward(
        &mut self,
        b: &B,
        chunk: usize,
        batch: DeviceBatch<B>,
        mut x: Option<Act<B>>,
        grads: &mut Grads<B>,
        sums: &mut Sums<B>,
    ) -> Option<Act<B>> {
        let cx = self.shared.context(b);
        let chunk = &mut self.chunks[chunk];
        let mut kept = Vec::with_capacity(chunk.units.len());
        for &unit in &chunk.units {
            kept.push(b.scope(Scope::Unit(unit), || match unit {
                Unit::Embedding => {
                    x = Some(embedding::forward(&cx, &self.params.embedding(), &batch.tokens()));
                    Kept::Nothing
                }
                Unit::Layer(l) => {
                    let pattern = self.shared.pattern(&batch, l);
                    let (y, kept) = forward_layer(&cx, &pattern, &self.params.layer(l), take(&mut x), self.recompute);
                    x = Some(y);
                    kept
                }
                Unit::Head => {
                    let (w, mut g, targets) =
                        (self.params.head(), grads.head(), self.shared.targets(&batch, self.z_loss));
                    Kept::Gradient(head::forward(&cx, &w, &take(&mut x), &targets, &mut g, &mut sums.totals))
                }
                Unit::Experts(_) => unreachable!("experts are a part of their layer"),
            }));
        }
        chunk.in_flight.push_back((batch, kept));
        x
    }

    /// Backward through the units of a chunk for its oldest micro-batch in flight. `dx` comes from the next chunk, the
    /// result goes to the previous chunk. Layers with experts add their auxiliary losses and load to `sums`. `reduce`
    /// is given for the chunk's last micro-batch of the step: the reduction of a bucket starts as soon as its gradients
    /// are complete.
    pub fn backward(
        &mut self,
        b: &B,
        chunk: usize,
        mut dx: Option<Act<B>>,
        grads: &mut Grads<B>,
        sums: &mut Sums<B>,
        reduce: Option<&Reduce<B>>,
    ) -> Option<Act<B>> {
        let chunk = &mut self.chunks[chunk];
        let (batch, kept) = chunk.in_flight.pop_front().expect("a backward follows its forward");
        let cx = self.shared.context(b);
        for (&unit, kept) in chunk.units.iter().zip(kept).rev() {
            dx = b.scope(Scope::Unit(unit), || match (unit, kept) {
                (Unit::Head, Kept::Gradient(dx)) => Some(dx),
                (Unit::Layer(l), kept) => {
                    let (w, mut g, pattern) = (self.params.layer(l), grads.layer(l), self.shared.pattern(&batch, l));
                    let saved = saved(&cx, &pattern, &w, kept);
                    self.shared.with_losses(sums, &batch, l, |losses| {
                        Some(block::backward(&cx, &pattern, &w, take(&mut dx), saved, &mut g, losses))
                    })
                }
                (Unit::Embedding, _) => {
                    let mut g = grads.embedding();
                    embedding::backward(&cx, &batch.tokens(), take(&mut dx), &mut g);
                    None
                }
                (Unit::Head | Unit::Experts(_), _) => {
                    unreachable!("the head keeps its gradient; experts are in layers")
                }
            });
            if let Some(reduce) = reduce {
                grads.unit_done(b, unit, reduce);
            }
        }
        dx
    }

    /// Forward for the losses alone, which `each` gets (see [`head::evaluate`]); nothing is kept for a backward.
    pub fn evaluate(
        &mut self,
        b: &B,
        chunk: usize,
        batch: &DeviceBatch<B>,
        mut x: Option<Act<B>>,
        each: &mut dyn FnMut(&Acc<B>, &Acc<B>),
    ) -> Option<Act<B>> {
        let cx = self.shared.context(b);
        for &unit in &self.chunks[chunk].units {
            x = b.scope(Scope::Unit(unit), || match unit {
                Unit::Embedding => Some(embedding::forward(&cx, &self.params.embedding(), &batch.tokens())),
                Unit::Layer(l) => {
                    let pattern = self.shared.pattern(batch, l);
                    Some(block::forward(&cx, &pattern, &self.params.layer(l), take(&mut x)).0)
                }
                Unit::Head => {
                    let targets = self.shared.targets(batch, self.z_loss);
                    head::evaluate(&cx, &self.params.head(), &take(&mut x), &targets, each);
                    None
                }
                Unit::Experts(_) => unreachable!("experts are a part of their layer"),
            });
        }
        x
    }
}

impl<B: Backend> Stage<B> {
    /// The logits of all rows, `[T, V/tp]`, before any soft-cap, of a chunk that holds the whole model.
    pub fn logits(&mut self, b: &B, batch: &DeviceBatch<B>) -> Act<B> {
        let x = self.through_layers(b, batch);
        head::whole_logits(&self.shared.context(b), &self.params.head(), &x)
    }

    /// Like [`Stage::logits`], of the rows `wanted`, where rows are not sharded outside of tensor-parallel regions.
    pub fn some_logits(&mut self, b: &B, batch: &DeviceBatch<B>, wanted: &[u32]) -> Act<B> {
        let x = self.through_layers(b, batch);
        let x = b.embed(&b.upload(wanted, wanted.len(), 1), &x, 0);
        head::whole_logits(&self.shared.context(b), &self.params.head(), &x)
    }

    /// The output of the last layer.
    fn through_layers(&mut self, b: &B, batch: &DeviceBatch<B>) -> Act<B> {
        let cx = self.shared.context(b);
        let mut x = embedding::forward(&cx, &self.params.embedding(), &batch.tokens());
        for l in 0..self.shared.model.num_hidden_layers {
            x = block::forward(&cx, &self.shared.pattern(batch, l), &self.params.layer(l), x).0;
        }
        x
    }

    /// The id of the first vocabulary row that this rank holds.
    pub fn vocab_start(&self) -> usize {
        self.shared.vocab_start
    }

    /// The tensor-parallel ranks.
    pub fn tensor_group(&self) -> &B::Group {
        self.shared.region.group()
    }
}

impl<B: Backend> Shared<B> {
    fn context<'a>(&'a self, b: &'a B) -> Ctx<'a, B> {
        let (model, region) = (&self.model, &self.region);
        Ctx {
            b,
            region,
            norms: norm::Norms { kind: model.norm_kind(), eps: model.norm_eps() as f32 },
            activation: model.activation(),
            moe: self.expert_shape(),
            embedding_scale: model.embedding_factor(|factor| b.rounded(factor)),
            vocab_start: self.vocab_start,
            positions_start: self.positions_start,
            hidden_start: share(model.hidden_size, region.group().rank(), region.group().size()).start,
        }
    }

    /// The settings of the layers with experts, if there are any: they are the same in all layers of a model.
    fn expert_shape(&self) -> Option<moe::Shape<'_, B>> {
        let of = self.model.layers().find_map(|layer| layer.experts())?;
        let sharing = self.experts.as_ref()?;
        let router = Router { per_token: of.per_token, weights: of.weights };
        Some(moe::Shape {
            router,
            experts: of.count,
            group: &sharing.group,
            buffer: sharing.buffer,
            further_rounds: &sharing.further_rounds,
        })
    }

    /// Calls `work` with the sums of auxiliary losses of layer `l`, if it has experts.
    fn with_losses<T>(
        &self,
        sums: &mut Sums<B>,
        batch: &DeviceBatch<B>,
        l: usize,
        work: impl FnOnce(Option<moe::Losses<B>>) -> T,
    ) -> T {
        let (Some(sharing), Some(_), Some(load)) = (&self.experts, self.model.layer(l).experts(), &mut sums.load)
        else {
            return work(None);
        };
        let balance = Balance { seq: batch.seq, factors: sharing.factors, targets: &sums.targets };
        let mut load = load.view_rows_mut(l..l + 1);
        work(Some(moe::Losses { balance, totals: &mut sums.totals, load: &mut load }))
    }

    fn targets<'a>(&self, batch: &'a DeviceBatch<B>, z_loss: f32) -> head::Targets<'a, B> {
        batch.targets(z_loss, self.model.final_logit_softcapping.map(|cap| cap as f32))
    }

    /// The heads of layer `l` on this rank, and the positions of a micro-batch.
    fn pattern<'a>(&'a self, batch: &'a DeviceBatch<B>, l: usize) -> Pattern<'a, B> {
        let starts = batch.starts(self.model.layer(l).attention);
        Pattern { heads: self.heads(l, batch.seq), rotary: self.rotary(&batch.positions), starts }
    }

    /// The heads of layer `l` on this rank, for sequences of `seq` rows.
    fn heads(&self, l: usize, seq: usize) -> Heads {
        let (model, ranks) = (&self.model, self.region.group().size());
        Heads {
            query: model.num_attention_heads / ranks,
            kv: model.num_key_value_heads.div_ceil(ranks),
            dim: model.head_dim,
            seq,
            span: model.layer(l).attention.span(seq),
            scale: model.score_scale() as f32,
            cap: model.attn_logit_softcapping.map(|cap| cap as f32),
        }
    }

    fn rotary<'a>(&'a self, positions: &'a Tensor<B, u32>) -> Option<Rotary<'a, B>> {
        self.rope.as_ref().map(|table| Rotary { table, positions })
    }
}

/// The kinds of attention of the layers among `units`, each once.
fn kinds(model: &Model, units: &[Unit]) -> Vec<AttentionKind> {
    let mut kinds = Vec::new();
    for unit in units {
        if let Unit::Layer(l) = unit
            && let kind = model.layer(*l).attention
            && !kinds.contains(&kind)
        {
            kinds.push(kind);
        }
    }
    kinds
}

fn forward_layer<B: Backend>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &block::Weights<B>,
    x: Act<B>,
    recompute: Recompute,
) -> (Act<B>, Kept<B>) {
    match recompute {
        Recompute::None => {
            let (y, saved) = block::forward(cx, p, w, x);
            (y, Kept::Layer(saved))
        }
        Recompute::Selective => {
            let (y, saved) = block::forward(cx, p, w, x);
            (y, Kept::Layer(saved.slim()))
        }
        Recompute::Full => {
            let input = cx.b.copy(&x);
            (block::forward(cx, p, w, x).0, Kept::Input(input))
        }
    }
}

/// The tensors that backward needs, recomputed if only the input was kept.
fn saved<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &block::Weights<B>, kept: Kept<B>) -> block::Saved<B> {
    match kept {
        Kept::Layer(saved) => saved,
        Kept::Input(x) => block::forward(cx, p, w, x).1,
        Kept::Nothing | Kept::Gradient(_) => unreachable!("a layer keeps its input or what backward needs"),
    }
}

fn take<B: Backend>(x: &mut Option<Act<B>>) -> Act<B> {
    x.take().expect("the unit before hands on its output")
}
