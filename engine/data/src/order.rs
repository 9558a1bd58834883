//! Sample order of one source: which tokens make up a sample (megatron/core/datasets/gpt_dataset.py).
//!
//! Megatron lays the documents of all epochs end to end in a shuffled order (its document index) and cuts that
//! stream into samples of `seq + 1` tokens that share their border token, so sample `j` is tokens
//! `j * seq ..= j * seq + seq` of the stream. Megatron's sample index is a table of where each sample starts; here the
//! start is computed from a running sum that is kept every [`STRIDE`] documents. A second shuffle (the shuffle index)
//! gives the order of the samples.
//!
//! Memory: 4 bytes per document and epoch, 8 more per `STRIDE` of those, 4 bytes per sample (8 where there are
//! more than 2^32 - 3); in sequential order 8 bytes per `STRIDE` documents. 10 billion tokens in documents of
//! 500, read once in samples of 4096, take 93 MB. While an order is built, the lengths of all documents are in memory,
//! 4 bytes each; later they are read from the `.idx`.

use std::ops::Range;

use super::idx::IndexedFile;
use super::mt19937::RandomState;
use engine::error::{Error, Result};

/// Documents between two running sums.
const STRIDE: usize = 64;
/// The longest document index that is built (16 GiB).
const MOST_DOCUMENTS: u64 = 1 << 32;

/// A piece of a sample: tokens `offset .. offset + count` of sequence `document` of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub document: u32,
    pub offset: u64,
    pub count: usize,
}

/// The order of the samples of one source.
#[derive(Debug)]
pub struct SampleOrder {
    documents: Documents,
    /// Tokens of the stream before document `STRIDE * i`.
    sums: Vec<u64>,
    seq: u64,
    shuffle: Shuffle,
    pub plan: Plan,
}

/// The numbers behind an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Documents of the split.
    pub documents: u64,
    /// Tokens of an epoch.
    pub tokens: u64,
    pub epochs: u64,
    /// Whether the last epoch is shuffled apart from the others.
    pub separate: bool,
    /// Samples in the stream.
    pub samples: u64,
}

#[derive(Debug)]
enum Documents {
    InOrder(Range<u32>),
    Shuffled(Vec<u32>),
}

#[derive(Debug)]
enum Shuffle {
    /// Samples come in the order of the stream and start over after the last.
    None,
    Narrow(Vec<u32>),
    Wide(Vec<u64>),
}

impl SampleOrder {
    /// Megatron's order of `range`'s sequences for at least `samples` samples; `None`: one epoch.
    pub fn megatron(file: &IndexedFile, range: Range<u32>, seq: u64, seed: u32, samples: Option<u64>) -> Result<Self> {
        let lengths = file.lengths()?;
        let tokens = tokens(&lengths, &range);
        let plan = plan(u64::from(range.end - range.start), tokens, seq, samples);
        if plan.epochs.saturating_mul(plan.documents) > MOST_DOCUMENTS {
            return Err(Error::user(format!(
                "{}: its {tokens} tokens would be read {} times; use more data, fewer steps or a smaller weight",
                file.prefix().display(),
                plan.epochs
            )));
        }
        let mut random = RandomState::new(seed);
        let documents = document_index(&range, plan, &mut random);
        let shuffle = shuffle_index(plan, seq, &mut random);
        let sums = running_sums(&lengths, documents.iter().copied());
        Ok(Self { documents: Documents::Shuffled(documents), sums, seq, shuffle, plan })
    }

    /// The sequences end to end as they lie in the file, starting over after the last full sample.
    pub fn sequential(file: &IndexedFile, range: Range<u32>, seq: u64) -> Result<Self> {
        let lengths = file.lengths()?;
        let plan = plan(u64::from(range.end - range.start), tokens(&lengths, &range), seq, None);
        let sums = running_sums(&lengths, range.clone());
        Ok(Self { documents: Documents::InOrder(range), sums, seq, shuffle: Shuffle::None, plan })
    }

    /// The pieces of sample `k`, `seq + 1` tokens together. An error if `file` has changed since it was indexed.
    pub fn pieces(&self, file: &IndexedFile, k: u64) -> Result<Vec<Piece>> {
        let sample = match &self.shuffle {
            Shuffle::None => k % self.plan.samples,
            Shuffle::Narrow(index) => u64::from(index[k as usize]),
            Shuffle::Wide(index) => index[k as usize],
        };
        self.walk(file, sample * self.seq)?.ok_or_else(|| file.changed())
    }

    /// The pieces of the tokens from `position` of the stream on; `None` if the lengths have changed.
    fn walk(&self, file: &IndexedFile, position: u64) -> Result<Option<Vec<Piece>>> {
        let Some((mut at, mut offset)) = self.locate(file, position)? else { return Ok(None) };
        let mut left = self.seq + 1;
        let mut pieces = Vec::new();
        while left > 0 {
            let Some(document) = self.document(at) else { return Ok(None) };
            let Some(rest) = file.length(document as usize)?.checked_sub(offset) else { return Ok(None) };
            let count = left.min(rest);
            if count > 0 {
                pieces.push(Piece { document, offset, count: count as usize });
            }
            left -= count;
            (at, offset) = (at + 1, 0);
        }
        Ok(Some(pieces))
    }

    /// `None` after the last document.
    fn document(&self, at: usize) -> Option<u32> {
        match &self.documents {
            Documents::InOrder(range) => range.clone().nth(at),
            Documents::Shuffled(index) => index.get(at).copied(),
        }
    }

    /// The location of token `position` of the stream: an index into the document order and an offset in that document;
    /// `None` if the lengths have changed.
    fn locate(&self, file: &IndexedFile, position: u64) -> Result<Option<(usize, u64)>> {
        let stride = self.sums.partition_point(|&sum| sum <= position) - 1;
        let (mut at, mut left) = (stride * STRIDE, position - self.sums[stride]);
        while let Some(document) = self.document(at) {
            let length = file.length(document as usize)?;
            if left < length {
                return Ok(Some((at, left)));
            }
            left -= length;
            at += 1;
        }
        Ok(None)
    }
}

/// One epoch of `range`'s sequences.
pub fn epoch(file: &IndexedFile, range: &Range<u32>, seq: u64) -> Result<Plan> {
    Ok(plan(u64::from(range.end - range.start), tokens(&file.lengths()?, range), seq, None))
}

/// The sequences of a split: `shares` cuts `0 .. sequences` at the rounded cumulative shares (the bookends of
/// megatron-core; older versions differ). `None` where the split's share is zero.
pub fn split_range(sequences: usize, shares: [f64; 3], split: usize) -> Option<Range<u32>> {
    let sum: f64 = shares.iter().sum();
    let mut ends = [0.0; 4];
    for i in 0..3 {
        ends[i + 1] = ends[i] + shares[i] / sum;
    }
    let bound = |x: f64| (x * sequences as f64).round_ties_even() as u32;
    (ends[split] < ends[split + 1]).then(|| bound(ends[split])..bound(ends[split + 1]))
}

fn tokens(lengths: &[u32], range: &Range<u32>) -> u64 {
    lengths[range.start as usize..range.end as usize].iter().copied().map(u64::from).sum()
}

/// Epochs and samples. The last epoch is shuffled apart where less than 80 % of it is needed.
fn plan(documents: u64, tokens: u64, seq: u64, samples: Option<u64>) -> Plan {
    let wanted = samples.map_or(0, |n| n.saturating_mul(seq).saturating_add(1));
    let epochs = if tokens == 0 { 1 } else { wanted.div_ceil(tokens).max(1) };
    let total = |epochs: u64| epochs.saturating_mul(tokens).saturating_sub(1) / seq;
    let separate = epochs > 1 && {
        let last = samples.expect("more than one epoch was asked for") - total(epochs - 1);
        last < (0.80 * total(1) as f64) as u64
    };
    Plan { documents, tokens, epochs, separate, samples: total(epochs) }
}

fn document_index(range: &Range<u32>, plan: Plan, random: &mut RandomState) -> Vec<u32> {
    let together = if plan.separate { plan.epochs - 1 } else { plan.epochs };
    let mut index: Vec<u32> = (0..together).flat_map(|_| range.clone()).collect();
    random.shuffle(&mut index);
    if plan.separate {
        let start = index.len();
        index.extend(range.clone());
        random.shuffle(&mut index[start..]);
    }
    index
}

fn shuffle_index(plan: Plan, seq: u64, random: &mut RandomState) -> Shuffle {
    let together = if plan.separate { ((plan.epochs - 1) * plan.tokens - 1) / seq } else { plan.samples };
    if plan.samples >= u64::from(u32::MAX) - 1 {
        let mut index: Vec<u64> = (0..plan.samples).collect();
        shuffle_parts(&mut index, together, random);
        return Shuffle::Wide(index);
    }
    let mut index: Vec<u32> = (0..plan.samples as u32).collect();
    shuffle_parts(&mut index, together, random);
    Shuffle::Narrow(index)
}

fn shuffle_parts<T>(index: &mut [T], together: u64, random: &mut RandomState) {
    let (first, last) = index.split_at_mut(together as usize);
    random.shuffle(first);
    random.shuffle(last);
}

fn running_sums(lengths: &[u32], documents: impl Iterator<Item = u32>) -> Vec<u64> {
    let mut sums = Vec::with_capacity(documents.size_hint().0 / STRIDE + 1);
    let mut sum = 0;
    for (i, document) in documents.enumerate() {
        if i % STRIDE == 0 {
            sums.push(sum);
        }
        sum += u64::from(lengths[document as usize]);
    }
    sums
}

#[cfg(test)]
mod tests;
