//! The interface between the data pipeline and the trainer: one micro-batch of one rank, on the host.

use crate::error::Result;
use std::ops::Range;

/// Samples laid end to end: row i of a sequence predicts `targets[i]` from `ids[..= i]`.
/// All vectors have `micro_batch_size * seq_length` elements.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MicroBatch {
    /// Rows of one sequence.
    pub seq: usize,
    pub ids: Vec<u32>,
    pub targets: Vec<u32>,
    /// 1 if the row's target counts in the loss, else 0.
    pub weights: Vec<f32>,
    /// The first position of its sequence that a row attends to: its document's start, or 0.
    pub starts: Vec<u32>,
    /// The position of each row, for the rotary embedding.
    pub positions: Vec<u32>,
}

impl MicroBatch {
    /// The number of targets that count in the loss.
    pub fn counted(&self) -> u64 {
        self.weights.iter().filter(|&&weight| weight > 0.0).count() as u64
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    /// The validation set of this index.
    Valid(usize),
}

impl Split {
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Valid(_) => "valid",
        }
    }

    /// Its place among the shares of `data.split`.
    pub fn share(self) -> usize {
        match self {
            Split::Train => 0,
            Split::Valid(_) => 1,
        }
    }
}

/// A source of micro-batches.
pub trait Samples {
    /// The samples with these indices in the split's order, laid end to end.
    fn micro_batch(&self, split: Split, samples: Range<u64>) -> Result<MicroBatch>;

    /// The bytes of text that the counted targets of a micro-batch of this split stand for; `None` where the split's
    /// tokenizer is unknown.
    fn text_bytes(&self, _split: Split, _batch: &MicroBatch) -> Option<u64> {
        None
    }
}

/// Samples of this many zeros, for runs in which only the shapes matter.
pub struct Blank(pub usize);

impl Samples for Blank {
    fn micro_batch(&self, _: Split, samples: Range<u64>) -> Result<MicroBatch> {
        let rows = (samples.end - samples.start) as usize * self.0;
        let (ids, targets, starts) = (vec![0; rows], vec![0; rows], vec![0; rows]);
        let positions = (0..rows as u32).map(|row| row % self.0 as u32).collect();
        Ok(MicroBatch { seq: self.0, ids, targets, weights: vec![1.0; rows], starts, positions })
    }
}
