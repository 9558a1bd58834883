//! A model that is evaluated, not trained, at any layout: what `evaluate` runs.

use crate::backend::{Backend, Pending};
use crate::config::{Config, Evaluation, Model};
use crate::error::Result;
use crate::layers::region::Region;
use crate::layout::buckets::Part;
use crate::layout::rank_layout::RankLayout;
use crate::model::param_specs::TensorSpec;
use crate::model::rect::Rect;
use crate::stage::groups::Groups;
use crate::stage::params::{ParamLayout, Params};
use crate::stage::{ExpertSharing, Stage};
use crate::train::likelihood::{Packed, Shape, Text, log_likelihoods};
use crate::train::pipeline::{Channel, PipelineComm};
use std::cell::Cell;
use std::rc::Rc;

/// This rank's part of a model: scores texts here, and continues them in `generate.rs`.
pub struct Scorer<B: Backend> {
    pub(super) b: B,
    pub(super) stage: Stage<B>,
    pub rank_layout: RankLayout,
    pub(super) shape: Shape,
    comm: PipelineComm<B>,
}

/// Sum of the losses in nats, and the tokens that were predicted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    pub nats: f64,
    pub tokens: u64,
}

impl std::ops::Add for Score {
    type Output = Score;
    fn add(self, other: Score) -> Score {
        Score { nats: self.nats + other.nats, tokens: self.tokens + other.tokens }
    }
}

impl<B: Backend> Scorer<B> {
    /// `config` is that of [`Config::of_evaluation`]; `read(tensor, rectangle, out)` gives the weights. Not collective,
    /// so that a rank may fail.
    pub fn new(
        b: B,
        groups: Groups<B>,
        config: &Config,
        rank_layout: RankLayout,
        read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let Groups { tensor, experts, activations, gradients, .. } = groups;
        let (stage, _) = loaded(&b, config, &rank_layout, [tensor, experts], read)?;
        let comm = PipelineComm {
            stage: rank_layout.stage,
            pipe: rank_layout.pipe,
            shape: rank_layout.message_shape(config),
            activations: Channel::new(activations),
            gradients: Channel::new(gradients),
        };
        let shape = Shape { sequences: config.train.micro_batch_size, seq: config.train.seq_length };
        Ok(Scorer { b, stage, rank_layout, shape, comm })
    }

    pub fn backend(&self) -> &B {
        &self.b
    }

    /// Whether this rank, of those that hold a replica of the model, is the one whose results count.
    pub fn answers(&self) -> bool {
        (self.rank_layout.tp.0, self.rank_layout.stage + 1) == (0, self.rank_layout.pipe.stages)
    }

    /// The log-likelihood of each text in nats, on the last stage; nothing on the others. `done(n, total)` is called
    /// when n of the micro-batches have begun. All ranks of a replica call this together with the same texts.
    pub fn log_likelihoods(&mut self, texts: &[Text], mut done: impl FnMut(usize, usize)) -> Result<Vec<f64>> {
        let packed = Packed::new(texts, self.shape);
        let (mut begun, total) = (0, packed.batches.len());
        log_likelihoods(&self.b, &mut self.stage, &mut self.comm, &packed, || {
            begun += 1;
            done(begun, total);
        })
    }

    /// Scores each text alone: every token but its first, in windows of `window` tokens, which do not overlap. Zero
    /// nats on stages other than the last one.
    pub fn score(&mut self, texts: &[Vec<u32>], window: usize) -> Result<Score> {
        let mut windows = Vec::new();
        for ids in texts.iter().filter(|ids| ids.len() > 1) {
            for first in (0..ids.len() - 1).step_by(window) {
                let end = (first + window).min(ids.len() - 1);
                windows.push(Text { ids: ids[first..=end].to_vec(), from: 1 });
            }
        }
        let nats = -self.log_likelihoods(&windows, |_, _| ())?.iter().sum::<f64>();
        Ok(Score { nats, tokens: windows.iter().map(|text| text.rows() as u64).sum() })
    }
}

/// A stage that holds a whole model in one chunk, for texts of up to `positions` tokens: the table of angles has as
/// many rows as the longest text needs, not as many as config.json allows. `read(tensor, rectangle, out)` gives the
/// weights.
pub(super) fn whole<B: Backend>(
    b: &B,
    model: &Model,
    positions: usize,
    read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<(Stage<B>, Rc<ParamLayout>)> {
    let config = Config::of_evaluation(model, &Evaluation::on_one_rank(positions), 1)?;
    let rank_layout = RankLayout::new(&config, config.mesh(1)?, 0);
    let Groups { tensor, experts, .. } = Groups::new(b, &config, &rank_layout);
    loaded(b, &config, &rank_layout, [tensor, experts], read)
}

/// This rank's stage with its weights, and how they lie in buckets.
fn loaded<B: Backend>(
    b: &B,
    config: &Config,
    rank_layout: &RankLayout,
    [tensor, experts]: [B::Group; 2],
    mut read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<(Stage<B>, Rc<ParamLayout>)> {
    let model = &config.model;
    let layout = ParamLayout::new(model, rank_layout.experts, rank_layout.buckets(config));
    let mut params = Params::new(b, layout.clone());
    for (i, bucket) in layout.buckets.iter().enumerate() {
        let mut host = vec![0.0; bucket.len];
        for Part { at, tensor, rect, .. } in bucket.parts(&(0..bucket.len)) {
            read(tensor, &rect, &mut host[at..at + rect.len()])?;
        }
        let mut weights = params.begin_write(i);
        b.round(&b.upload(&host, host.len(), 1), &mut weights);
        params.finish_write(i, Pending::ready(weights));
    }
    let region = Region::new(tensor, config.parallel.sequence_parallel);
    // On one rank no buffer is planned for, since all rows fit.
    let sharing = ExpertSharing { group: experts, buffer: 1.0, factors: [0.0; 2], further_rounds: Cell::new(0) };
    let stage = Stage::new(b, model, rank_layout.chunks.clone(), region, params, config.train.seq_length);
    Ok((stage.experts(sharing), layout))
}
