//! Log-likelihoods of texts: texts are packed into micro-batches of one shape, which run through the stages of a
//! pipeline as those of a validation do. A text attends to itself alone.

use crate::backend::{Acc, Backend};
use crate::batch::MicroBatch;
use crate::error::{Error, Result};
use crate::schedule::{self, Pipe};
use crate::stage::Stage;
use crate::train::pipeline::{self, PipelineComm};
use std::ops::Range;

/// Sequences that are looked through for a place for a text.
const OPEN: usize = 64;

/// A text, of which the tokens `from ..` are scored, each given all those before it. `0 < from <= ids.len()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    pub ids: Vec<u32>,
    pub from: usize,
}

impl Text {
    /// The rows that it takes: its last token is only predicted.
    pub fn rows(&self) -> usize {
        self.ids.len() - 1
    }
}

/// The shape of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub sequences: usize,
    /// Rows of a sequence; no text has more.
    pub seq: usize,
}

/// Texts in micro-batches.
pub struct Packed {
    pub batches: Vec<MicroBatch>,
    /// For each text its micro-batch, and its targets among those of the micro-batch that count.
    places: Vec<(usize, Range<usize>)>,
}

impl Packed {
    /// Puts each text into the first of the last few sequences that has room for it.
    pub fn new(texts: &[Text], shape: Shape) -> Packed {
        let mut fill: Vec<usize> = Vec::new();
        let mut starts = Vec::new();
        for text in texts {
            let rows = text.rows();
            assert!(rows <= shape.seq, "a text of {rows} rows in sequences of {}", shape.seq);
            assert!(text.from > 0 && text.from <= text.ids.len(), "tokens {} .. of {}", text.from, text.ids.len());
            let recent = fill.len().saturating_sub(OPEN)..fill.len();
            let sequence = recent.into_iter().find(|&i| fill[i] + rows <= shape.seq).unwrap_or(fill.len());
            fill.resize(fill.len().max(sequence + 1), 0);
            starts.push((sequence, fill[sequence]));
            fill[sequence] += rows;
        }
        let mut packed = Packed { batches: Vec::new(), places: vec![(0, 0..0); texts.len()] };
        packed.pad(fill.len().div_ceil(shape.sequences), shape);
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| starts[i]);
        let mut counted = vec![0; packed.batches.len()];
        for i in order {
            let (sequence, start) = starts[i];
            let (batch, row) = (sequence / shape.sequences, sequence % shape.sequences * shape.seq + start);
            lay(&mut packed.batches[batch], &texts[i], row, start);
            let targets = texts[i].ids.len() - texts[i].from;
            packed.places[i] = (batch, counted[batch]..counted[batch] + targets);
            counted[batch] += targets;
        }
        packed
    }

    /// Adds micro-batches without targets until there are `n`: ranks that share experts run the same number.
    pub fn pad(&mut self, n: usize, shape: Shape) {
        self.batches.resize_with(n.max(self.batches.len()), || blank(shape));
    }

    /// The log-likelihood of each text, in nats, from the losses of each micro-batch's targets.
    fn sums(&self, losses: &[Vec<f64>]) -> Vec<f64> {
        let sum = |(batch, targets): &(usize, Range<usize>)| -losses[*batch][targets.clone()].iter().sum::<f64>();
        self.places.iter().map(sum).collect()
    }
}

/// A micro-batch in which nothing counts. Each of its rows attends to itself alone.
pub(super) fn blank(shape: Shape) -> MicroBatch {
    let rows = shape.sequences * shape.seq;
    MicroBatch {
        seq: shape.seq,
        ids: vec![0; rows],
        targets: vec![0; rows],
        weights: vec![0.0; rows],
        starts: (0..rows).map(|row| (row % shape.seq) as u32).collect(),
        positions: vec![0; rows],
    }
}

/// Writes a text into the rows from `row` on, which are those of its sequence from `start` on.
pub(super) fn lay(batch: &mut MicroBatch, text: &Text, row: usize, start: usize) {
    for (i, ids) in text.ids.windows(2).enumerate() {
        let row = row + i;
        (batch.ids[row], batch.targets[row]) = (ids[0], ids[1]);
        batch.weights[row] = if i + 1 >= text.from { 1.0 } else { 0.0 };
        (batch.starts[row], batch.positions[row]) = (start as u32, i as u32);
    }
}

/// Runs the micro-batches through the pipeline; `done` is called for each one. Returns the log-likelihood of each text
/// on the last stage, nothing on the others. All stages and tensor-parallel ranks of a replica call this together with
/// the same texts.
pub fn log_likelihoods<B: Backend>(
    b: &B,
    stage: &mut Stage<B>,
    comm: &mut PipelineComm<B>,
    packed: &Packed,
    mut done: impl FnMut(),
) -> Result<Vec<f64>> {
    let n_mbs = packed.batches.len();
    if n_mbs == 0 {
        return Ok(Vec::new());
    }
    let actions = schedule::forward_only(comm.stage, &Pipe { n_mbs, ..comm.pipe });
    let mut copies: Vec<Vec<B::HostCopy<f32>>> = (0..n_mbs).map(|_| Vec::new()).collect();
    let mut keep = |mb: usize, stats: &Acc<B>, _: &Acc<B>| copies[mb].push(b.copy_to_host_async(stats));
    let last_chunk = comm.pipe.chunks - 1;
    let mut reads = 0;
    pipeline::evaluate(b, &actions, stage, comm, &mut keep, |mb| {
        // With several chunks of layers, a stage reads each micro-batch several times.
        reads += 1;
        (reads % (last_chunk + 1) == 0).then(&mut done);
        Ok::<_, Error>(packed.batches[mb].clone())
    })?;
    if comm.stage + 1 < comm.pipe.stages {
        return Ok(Vec::new());
    }
    let mut losses = Vec::new();
    for copies in copies {
        let mut of_batch = Vec::new();
        for copy in copies {
            let stats = b.wait_host(copy).map_err(|fault| Error::run(fault.to_string()))?;
            of_batch.extend(stats.chunks(3).map(loss));
        }
        losses.push(of_batch);
    }
    Ok(packed.sums(&losses))
}

/// log Z - logit of the target, from (max, sum of exp(logit - max), the target's logit).
fn loss(stats: &[f32]) -> f64 {
    stats[0] as f64 + (stats[1] as f64).ln() - stats[2] as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(n: usize, from: usize, first: u32) -> Text {
        Text { ids: (first..first + n as u32).collect(), from }
    }

    #[test]
    fn a_text_sees_itself_alone() {
        let packed = Packed::new(&[text(4, 2, 10), text(3, 1, 20), text(3, 2, 30)], Shape { sequences: 1, seq: 5 });
        let [first, second] = &packed.batches[..] else { panic!("{} batches", packed.batches.len()) };
        assert_eq!((&first.ids[..], &first.targets[..]), (&[10, 11, 12, 20, 21][..], &[11, 12, 13, 21, 22][..]));
        assert_eq!(first.weights, [0.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!((&first.starts[..], &first.positions[..]), (&[0, 0, 0, 3, 3][..], &[0, 1, 2, 0, 1][..]));
        assert_eq!(second.starts, [0, 0, 2, 3, 4]);
        assert_eq!(packed.places, [(0, 0..2), (0, 2..4), (1, 0..1)]);
        assert_eq!(packed.sums(&[vec![1.0, 2.0, 3.0, 4.0, 99.0], vec![5.0]]), [-3.0, -7.0, -5.0]);
    }

    #[test]
    fn no_text_needs_no_micro_batch() {
        let shape = Shape { sequences: 2, seq: 3 };
        let mut packed = Packed::new(&[], shape);
        assert!(packed.batches.is_empty());
        packed.pad(2, shape);
        assert_eq!(packed.batches.len(), 2);
        assert!(packed.batches.iter().all(|batch| batch.counted() == 0 && batch.ids.len() == 6));
    }

    proptest! {
        /// Each target that counts belongs to one text, and the losses of its targets are those of its tokens.
        #[test]
        fn every_target_is_found_again(
            sizes in proptest::collection::vec((2..20usize, 0..20usize), 1..60),
            sequences in 1..4usize,
            seq in 19..40usize,
        ) {
            let texts: Vec<Text> = (0..).zip(&sizes).map(|(i, &(n, from))| text(n, 1 + from % n, 100 * i)).collect();
            let packed = Packed::new(&texts, Shape { sequences, seq });
            // The loss of a target is its id.
            let of = |batch: &MicroBatch| -> Vec<f64> {
                let counted = (0..batch.ids.len()).filter(|&row| batch.weights[row] > 0.0);
                counted.map(|row| batch.targets[row] as f64).collect()
            };
            let losses: Vec<Vec<f64>> = packed.batches.iter().map(of).collect();
            let right = |text: &Text| -text.ids[text.from..].iter().map(|&id| id as f64).sum::<f64>();
            prop_assert_eq!(packed.sums(&losses), texts.iter().map(right).collect::<Vec<_>>());
            let counted: usize = losses.iter().map(Vec::len).sum();
            prop_assert_eq!(counted, texts.iter().map(|text| text.ids.len() - text.from).sum::<usize>());
        }
    }
}
