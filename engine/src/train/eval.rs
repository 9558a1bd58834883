//! The mean loss of a model on texts, without training: what `evaluate` prints.

use crate::backend::{Backend, Pending, Total};
use crate::batch::MicroBatch;
use crate::config::Model;
use crate::error::{Error, Result};
use crate::layers::region::Region;
use crate::layout::buckets::{self, Held, Part, Tie};
use crate::layout::mesh::GroupKind;
use crate::model::param_specs::{self, ExpertShare, TensorSpec};
use crate::model::rect::Rect;
use crate::stage::params::{ParamLayout, Params};
use crate::stage::{ExpertSharing, Stage};
use std::cell::Cell;
use std::rc::Rc;

/// The number of rows that are scored at once if texts are long enough.
const ROWS: usize = 4096;
/// Elements of a bucket: weights are read a bucket at a time.
const BUCKET: usize = 1 << 24;

/// A model held whole by this rank: scores texts here, and continues them in `generate.rs`.
pub struct Scorer<B: Backend> {
    pub(super) b: B,
    pub(super) stage: Stage<B>,
    positions: usize,
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
    /// `longest`: tokens of the longest text that will be scored; `read(tensor, rectangle, out)` gives the weights.
    pub fn new(
        b: B,
        model: &Model,
        longest: usize,
        read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let positions = model.max_position_embeddings.min(longest.max(1));
        let (stage, _) = whole(&b, model, positions, read)?;
        Ok(Scorer { b, stage, positions })
    }

    /// Scores each text alone: every token but its first, in windows that do not overlap if the text is longer than the
    /// model's positions.
    pub fn score(&mut self, texts: &[Vec<u32>]) -> Result<Score> {
        let mut windows: Vec<(&[u32], &[u32])> = Vec::new();
        for ids in texts.iter().filter(|ids| ids.len() > 1) {
            let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
            windows.extend(inputs.chunks(self.positions).zip(targets.chunks(self.positions)));
        }
        let mut score = Score::default();
        for same in windows.chunk_by(|a, b| a.0.len() == b.0.len()) {
            let seq = same[0].0.len();
            for batch in same.chunks((ROWS / seq).max(1)) {
                score = score + self.batch(batch, seq)?;
            }
        }
        Ok(score)
    }

    /// The log-likelihood in nats of the tokens `from ..` of a text, each given all those before it.
    pub fn log_likelihood(&mut self, ids: &[u32], from: usize) -> Result<f64> {
        assert!(from > 0 && from <= ids.len(), "tokens {from} .. of {}", ids.len());
        let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
        let counts = |row: usize| if row + 1 >= from { 1.0 } else { 0.0 };
        let weights = (0..inputs.len()).map(counts).collect();
        Ok(-self.loss(MicroBatch { weights, ..micro_batch(&[(inputs, targets)], inputs.len()) })?)
    }

    fn batch(&mut self, windows: &[(&[u32], &[u32])], seq: usize) -> Result<Score> {
        Ok(Score { nats: self.loss(micro_batch(windows, seq))?, tokens: (windows.len() * seq) as u64 })
    }

    /// The sum of the losses.
    fn loss(&mut self, host: MicroBatch) -> Result<f64> {
        let mut totals = self.b.alloc(1, Total::COUNT);
        self.b.zero(&mut totals);
        let batch = self.stage.upload(&self.b, 0, &host);
        self.stage.evaluate(&self.b, 0, &batch, None, &mut totals);
        let totals =
            self.b.wait_host(self.b.copy_to_host_async(&totals)).map_err(|fault| Error::run(fault.to_string()))?;
        Ok(totals[Total::Loss as usize] as f64)
    }
}

/// Inputs and targets of the same length, all of which count.
fn micro_batch(windows: &[(&[u32], &[u32])], seq: usize) -> MicroBatch {
    let rows = windows.len() * seq;
    MicroBatch {
        seq,
        ids: windows.iter().flat_map(|w| w.0).copied().collect(),
        targets: windows.iter().flat_map(|w| w.1).copied().collect(),
        weights: vec![1.0; rows],
        starts: vec![0; rows],
        positions: (0..rows as u32).map(|row| row % seq as u32).collect(),
    }
}

/// A stage that holds a whole model in one chunk, for texts of up to `positions` tokens: the table of angles has as
/// many rows as the longest text needs, not as many as config.json allows. `read(tensor, rectangle, out)` gives the
/// weights.
pub(super) fn whole<B: Backend>(
    b: &B,
    model: &Model,
    positions: usize,
    mut read: impl FnMut(&TensorSpec, &Rect, &mut [f32]) -> Result<()>,
) -> Result<(Stage<B>, Rc<ParamLayout>)> {
    let units = param_specs::units(model);
    let held = |unit| Held {
        unit,
        tensors: param_specs::tensors(model, unit, ExpertShare::ALL),
        tie: Tie::Free,
        reduced_over: GroupKind::Data,
    };
    let held: Vec<Held> = units.iter().flat_map(|&unit| param_specs::with_experts(model, unit)).map(held).collect();
    let layout = ParamLayout::new(model, ExpertShare::ALL, buckets::plan(&held, (0, 1), |_| 1, BUCKET));
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
    let region = Region::new(b.group(GroupKind::Tensor, &[0]), false);
    // Other texts have other numbers of tokens; on one rank no buffer is planned for, since all rows fit.
    let sharing = ExpertSharing {
        group: b.group(GroupKind::Experts, &[0]),
        buffer: 1.0,
        factors: [0.0; 2],
        further_rounds: Cell::new(0),
    };
    let stage = Stage::new(b, model, vec![units], region, params, positions).experts(sharing);
    Ok((stage, layout))
}
