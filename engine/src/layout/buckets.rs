//! Parameters laid out in flat buckets: the unit of the gradients' reduce-scatter and of the
//! weights' all-gather. A bucket holds whole slots; its decayed tensors come first, so that a shard
//! is decayed up to one border. Its length is padded to whole vectors of each rank that shares it.

use crate::model::param_specs::{TensorSpec, Unit};
use crate::model::rect::Rect;
use std::ops::Range;

/// Elements of bf16 that a device moves at once: a shard begins where one begins.
const VECTOR: usize = 8;

/// Some of a rank's tensors, finished together.
#[derive(Debug, Clone)]
pub struct Held {
    pub unit: Unit,
    pub tensors: Vec<TensorSpec>,
    pub tie: Tie,
}

/// Does another stage hold the same tensors (the table of a model with tied embeddings)? Then they
/// have a bucket of their own, with the same spans on both stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    Free,
    /// The first stage answers for the table: counts it in the norm and saves it.
    First,
    Last,
}

/// One tensor's place in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub unit: Unit,
    pub tensor: TensorSpec,
    /// The rectangle of the true tensor that is held here, row-major.
    pub held: Rect,
    /// First element in the bucket.
    pub at: usize,
    /// Tensor-parallel ranks that hold the same elements, this rank among them.
    pub copies: usize,
    /// Of all that hold these elements, this rank counts them in the norm and saves them.
    pub owned: bool,
}

impl Span {
    pub fn range(&self) -> Range<usize> {
        self.at..self.at + self.held.len()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub units: Vec<Unit>,
    pub spans: Vec<Span>,
    /// Elements of decayed tensors, all in front.
    pub decayed: usize,
    /// Elements with the padding.
    pub len: usize,
    pub tie: Tie,
}

/// A part of a shard: consecutive elements that are a rectangle of a tensor.
pub struct Part<'a> {
    /// First element in the shard.
    pub at: usize,
    pub tensor: &'a TensorSpec,
    pub rect: Rect,
    /// As [`Span::owned`].
    pub owned: bool,
}

impl Bucket {
    fn new(held: &[&Held], tp: (usize, usize), ranks: usize) -> Self {
        let tensors = held.iter().flat_map(|held| held.tensors.iter().map(|tensor| (*held, tensor)));
        let (decayed, plain): (Vec<_>, Vec<_>) = tensors.partition(|(_, tensor)| tensor.decayed);
        let n_decayed = decayed.len();
        let (mut at, mut spans) = (0, Vec::<Span>::new());
        for (held, tensor) in decayed.into_iter().chain(plain) {
            let (rect, copies) = (tensor.held(tp.0, tp.1), tensor.copies(tp.1));
            let owned = tp.0.is_multiple_of(copies) && held.tie != Tie::Last;
            spans.push(Span { unit: held.unit, tensor: tensor.clone(), at, copies, owned, held: rect });
            at = spans[spans.len() - 1].range().end;
        }
        let decayed = n_decayed.checked_sub(1).map_or(0, |last| spans[last].range().end);
        let (units, tie) = (held.iter().map(|held| held.unit).collect(), held[0].tie);
        Bucket { units, spans, decayed, len: at.next_multiple_of(ranks * VECTOR), tie }
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

    /// What the elements `shard` are. Padding is in no part.
    pub fn parts(&self, shard: &Range<usize>) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        for span in &self.spans {
            let both = intersection(&span.range(), shard);
            if !both.is_empty() {
                let rects = span.held.slice(both.start - span.at..both.end - span.at);
                let (first, tensor, owned) = (both.start - shard.start, &span.tensor, span.owned);
                parts.extend(rects.into_iter().map(|(at, rect)| Part { at: first + at, tensor, rect, owned }));
            }
        }
        parts
    }

    /// The elements of `shard`, counted from its start, that this rank counts in the norm: as few ranges as can be.
    pub fn owned(&self, shard: &Range<usize>) -> Vec<Range<usize>> {
        let owned = self.spans.iter().filter(|span| span.owned).map(|span| intersection(&span.range(), shard));
        joined(owned.map(|range| range.start.max(shard.start) - shard.start..range.end.max(shard.start) - shard.start))
    }

    /// The elements of the tensors that `which` says.
    pub fn ranges(&self, which: impl Fn(&Span) -> bool) -> Vec<Range<usize>> {
        joined(self.spans.iter().filter(|span| which(span)).map(Span::range))
    }

    pub fn span(&self, name: &str) -> &Span {
        self.spans.iter().find(|span| span.tensor.name == name).unwrap_or_else(|| panic!("no {name} in this bucket"))
    }
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Ascending ranges with neighbours made one and empty ones left out.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

/// Groups what a chunk of layers holds, in order, into buckets of at least `min_len` elements (a chunk's
/// last may be shorter); a tied table stands alone.
///
/// `tp` is this rank's place among the tensor-parallel ranks, (rank, ranks); `ranks` share a bucket. The
/// borders are those of tensor-parallel rank 0, whose shares are the longest, so that all ranks have as many.
pub fn plan(held: &[Held], tp: (usize, usize), ranks: usize, min_len: usize) -> Vec<Bucket> {
    let (mut buckets, mut open, mut len) = (Vec::new(), Vec::<&Held>::new(), 0);
    for held in held {
        if held.tie != Tie::Free {
            buckets.push(Bucket::new(&[held], tp, ranks));
            continue;
        }
        open.push(held);
        len += held.tensors.iter().map(|t| t.held(0, tp.1).len()).sum::<usize>();
        if len >= min_len {
            buckets.push(Bucket::new(&std::mem::take(&mut open), tp, ranks));
            len = 0;
        }
    }
    if !open.is_empty() {
        buckets.push(Bucket::new(&open, tp, ranks));
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;
    use crate::model::param_specs::{TpShard, tensors, units};
    use proptest::prelude::*;

    fn specs(units: usize, rows: usize, cols: usize) -> Vec<Held> {
        let spec =
            |name: String, dims: Vec<usize>, decayed| TensorSpec { name, dims, tp_shard: TpShard::Whole, decayed };
        let unit = |l| {
            let tensors = vec![
                spec(format!("{l}.a"), vec![rows, cols], true),
                spec(format!("{l}.norm"), vec![cols], false),
                spec(format!("{l}.b"), vec![cols, rows], true),
            ];
            Held { unit: Unit::Layer(l), tensors, tie: Tie::Free }
        };
        (0..units).map(unit).collect()
    }

    proptest! {
        /// Over all ranks and buckets the pieces are every element of every tensor exactly once, the
        /// decayed ones in front of the border.
        #[test]
        fn shards_hold_every_element_once(units in 1usize..6, rows in 1usize..9, cols in 1usize..9, ranks in 1usize..6, min_len in 1usize..400) {
            let units = specs(units, rows, cols);
            let mut seen = std::collections::HashMap::<(String, usize, usize), usize>::new();
            for bucket in plan(&units, (0, 1), ranks, min_len) {
                prop_assert!(bucket.len - bucket.used() < ranks * VECTOR);
                for rank in 0..ranks {
                    let shard = bucket.shard(rank, ranks);
                    for Part { at, tensor, rect, .. } in bucket.parts(&shard) {
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
            let all: usize = units.iter().flat_map(|held| &held.tensors).map(TensorSpec::len).sum();
            prop_assert_eq!(seen.len(), all);
            prop_assert!(seen.values().all(|&n| n == 1));
        }

        /// Over the ranks of a layout, whatever is copied, what is owned is every element of the model once,
        /// and the tensor-parallel ranks have as many buckets.
        #[test]
        fn ranks_own_every_element_once(tp_log in 0usize..4, kv_log in 0usize..4, dp in 1usize..4, vocab in 16usize..40, min_len in 1usize..4000) {
            let (tp, model) = (1 << tp_log, model(1 << kv_log, vocab));
            let held: Vec<Held> = units(&model)
                .into_iter()
                .map(|unit| Held { unit, tensors: tensors(&model, unit), tie: Tie::Free })
                .collect();
            let buckets: Vec<Vec<Bucket>> = (0..tp).map(|rank| plan(&held, (rank, tp), dp, min_len)).collect();
            let mut seen = std::collections::HashMap::<(String, usize, usize), usize>::new();
            for bucket in buckets.iter().flatten() {
                for shard in (0..dp).map(|rank| bucket.shard(rank, dp)) {
                    let owned = bucket.owned(&shard);
                    for part in bucket.parts(&shard) {
                        let inside = owned.iter().any(|range| range.contains(&part.at) && part.at + part.rect.len() <= range.end);
                        prop_assert_eq!(part.owned, inside);
                        let rows = part.rect.rows.clone();
                        for (r, c) in rows.flat_map(|r| part.rect.cols.clone().map(move |c| (r, c))) {
                            *seen.entry((part.tensor.name.clone(), r, c)).or_default() += usize::from(part.owned);
                        }
                    }
                }
            }
            prop_assert!(buckets.iter().all(|b| b.len() == buckets[0].len()));
            prop_assert_eq!(seen.len(), held.iter().flat_map(|held| &held.tensors).map(TensorSpec::len).sum::<usize>());
            prop_assert!(seen.values().all(|&n| n == 1));
        }
    }

    fn model(kv_heads: usize, vocab: usize) -> Model {
        Model {
            hidden_size: 16,
            intermediate_size: 16,
            num_attention_heads: 8,
            num_key_value_heads: kv_heads,
            head_dim: 2,
            vocab_size: vocab,
            ..Model::tiny()
        }
    }
}
