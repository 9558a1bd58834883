//! Parameters laid out in flat buckets: the unit of the gradients' reduce-scatter and of the
//! weights' all-gather. A bucket holds whole slots; its decayed tensors come first, so that a shard
//! is decayed up to one border. Its length is padded to a multiple of the ranks that share it.

use crate::inventory::{Slot, TensorSpec};
use crate::rect::Rect;
use std::ops::Range;

/// One tensor's place in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub slot: Slot,
    pub tensor: TensorSpec,
    /// The rectangle of the true tensor that is held here, row-major.
    pub held: Rect,
    /// First element in the bucket.
    pub at: usize,
}

impl Span {
    pub fn range(&self) -> Range<usize> {
        self.at..self.at + self.held.len()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub slots: Vec<Slot>,
    pub spans: Vec<Span>,
    /// Elements of decayed tensors, all in front.
    pub decayed: usize,
    /// Elements with the padding.
    pub len: usize,
}

impl Bucket {
    fn new(slots: Vec<Slot>, tensors: Vec<(Slot, TensorSpec)>, tp: (usize, usize), ranks: usize) -> Self {
        let (decayed, plain): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(_, t)| t.decayed);
        let n_decayed = decayed.len();
        let (mut at, mut border, mut spans) = (0, 0, Vec::new());
        for (i, (slot, tensor)) in decayed.into_iter().chain(plain).enumerate() {
            let held = tensor.held(tp.0, tp.1);
            let len = held.len();
            spans.push(Span { slot, tensor, held, at });
            at += len;
            if i < n_decayed {
                border = at;
            }
        }
        Bucket { slots, spans, decayed: border, len: at.next_multiple_of(ranks) }
    }

    /// The elements that are not padding.
    pub fn used(&self) -> usize {
        self.spans.last().map_or(0, |span| span.range().end)
    }

    /// The part of the bucket that rank `rank` of `ranks` updates.
    pub fn shard(&self, rank: usize, ranks: usize) -> Range<usize> {
        assert_eq!(self.len % ranks, 0, "a bucket of {} over {ranks} ranks", self.len);
        let each = self.len / ranks;
        rank * each..(rank + 1) * each
    }

    /// What the elements `shard` are: each piece's place in the shard, its tensor, and the rectangle of
    /// the true tensor. Padding is in no piece.
    pub fn pieces(&self, shard: &Range<usize>) -> Vec<(usize, &TensorSpec, Rect)> {
        let mut pieces = Vec::new();
        for span in &self.spans {
            let whole = span.range();
            let (start, end) = (whole.start.max(shard.start), whole.end.min(shard.end));
            if start < end {
                let rects = span.held.slice(start - span.at..end - span.at);
                pieces.extend(rects.into_iter().map(|(at, rect)| (start - shard.start + at, &span.tensor, rect)));
            }
        }
        pieces
    }

    pub fn span(&self, name: &str) -> &Span {
        self.spans.iter().find(|span| span.tensor.name == name).unwrap_or_else(|| panic!("no {name} in this bucket"))
    }
}

/// Groups slots, in order, into buckets of at least `min_len` elements (the last may be shorter).
///
/// `tp` is this rank's place among the tensor-parallel ranks, (rank, ranks); `ranks` share a bucket.
pub fn plan(slots: &[(Slot, Vec<TensorSpec>)], tp: (usize, usize), ranks: usize, min_len: usize) -> Vec<Bucket> {
    let (mut buckets, mut names, mut tensors, mut len) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (i, (slot, specs)) in slots.iter().enumerate() {
        names.push(*slot);
        len += specs.iter().map(|t| t.held(tp.0, tp.1).len()).sum::<usize>();
        tensors.extend(specs.iter().map(|t| (*slot, t.clone())));
        if len >= min_len || i + 1 == slots.len() {
            buckets.push(Bucket::new(std::mem::take(&mut names), std::mem::take(&mut tensors), tp, ranks));
            len = 0;
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Cut;
    use proptest::prelude::*;

    fn specs(slots: usize, rows: usize, cols: usize) -> Vec<(Slot, Vec<TensorSpec>)> {
        let spec = |name: String, dims: Vec<usize>, decayed| TensorSpec { name, dims, cut: Cut::Whole, decayed };
        let slot = |l| {
            let tensors = vec![
                spec(format!("{l}.a"), vec![rows, cols], true),
                spec(format!("{l}.norm"), vec![cols], false),
                spec(format!("{l}.b"), vec![cols, rows], true),
            ];
            (Slot::Layer(l), tensors)
        };
        (0..slots).map(slot).collect()
    }

    proptest! {
        /// Over all ranks and buckets the pieces are every element of every tensor exactly once, the
        /// decayed ones in front of the border.
        #[test]
        fn shards_hold_every_element_once(slots in 1usize..6, rows in 1usize..9, cols in 1usize..9, ranks in 1usize..6, min_len in 1usize..400) {
            let slots = specs(slots, rows, cols);
            let mut seen = std::collections::HashMap::<(String, usize, usize), usize>::new();
            for bucket in plan(&slots, (0, 1), ranks, min_len) {
                prop_assert!(bucket.len - bucket.used() < ranks);
                for rank in 0..ranks {
                    let shard = bucket.shard(rank, ranks);
                    for (at, tensor, rect) in bucket.pieces(&shard) {
                        let border = shard.start + at < bucket.decayed;
                        prop_assert_eq!(border, tensor.decayed);
                        for r in rect.rows.clone() {
                            for c in rect.cols.clone() {
                                *seen.entry((tensor.name.clone(), r, c)).or_default() += 1;
                            }
                        }
                    }
                }
            }
            let all: usize = slots.iter().flat_map(|(_, t)| t).map(TensorSpec::len).sum();
            prop_assert_eq!(seen.len(), all);
            prop_assert!(seen.values().all(|&n| n == 1));
        }
    }
}
