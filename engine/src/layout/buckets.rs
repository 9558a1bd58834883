//! Parameters laid out in flat buckets. One reduce-scatter of gradients and one all-gather of weights move one bucket.
//! A bucket holds whole units. Its decayed tensors come first, then those without weight decay, then frozen ones, so
//! that each kind is one range of any shard. Its length is padded to whole vectors of each rank that shards it.

use super::mesh::GroupKind;
use crate::model::param_specs::{TensorSpec, Unit, Update};
use crate::model::rect::Rect;
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements of bf16 that a device loads at once: every shard begins on such a vector.
const VECTOR: usize = 8;

/// Tensors of a rank whose gradients are complete at the same time.
#[derive(Debug, Clone)]
pub struct Held {
    pub unit: Unit,
    pub tensors: Vec<TensorSpec>,
    pub tie: Tie,
    /// The data-parallel ranks, which hold the same weights and train on other samples: gradients are summed, and the
    /// optimizer's state is sharded, over them.
    pub reduced_over: GroupKind,
}

/// Whether another stage holds the same tensors (the table of a model with tied embeddings). If so, they have a bucket
/// of their own, with the same spans on both stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    Free,
    /// The first stage owns the table: it counts it in the gradient norm and saves it.
    First,
    Last,
}

/// A tensor's range of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub unit: Unit,
    pub tensor: TensorSpec,
    /// The rectangle of the unpadded tensor that this rank holds, row-major.
    pub held: Rect,
    /// First element in the bucket.
    pub at: usize,
    /// The number of tensor-parallel ranks that hold the same elements, this rank among them.
    pub replicas: usize,
    /// Whether this rank, of all ranks that hold these elements, counts them in the gradient norm and saves them.
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
    /// Elements of decayed tensors, the first ones of the bucket.
    pub decayed: usize,
    /// Elements that the optimizer updates, decayed or not: all up to the first frozen one, or, if nothing is frozen,
    /// the whole bucket with its padding (whose gradients are zero).
    pub trained: usize,
    /// Elements with the padding.
    pub len: usize,
    pub tie: Tie,
    /// See [`Held::reduced_over`]: the same for all units of a bucket.
    pub reduced_over: GroupKind,
}

/// A part of a shard: consecutive elements that are a rectangle of a tensor.
pub struct Part<'a> {
    /// First element in the shard.
    pub at: usize,
    pub tensor: &'a TensorSpec,
    pub rect: Rect,
    /// See [`Span::owned`].
    pub owned: bool,
}

impl Bucket {
    fn new(held: &[&Held], tp: (usize, usize), ranks: usize) -> Self {
        let mut spans = Vec::<Span>::new();
        let mut ends = [0; 3];
        for (kind, end) in [Update::Decayed, Update::Plain, Update::Frozen].into_iter().zip(&mut ends) {
            let tensors = held.iter().flat_map(|held| held.tensors.iter().map(move |tensor| (held, tensor)));
            for (held, tensor) in tensors.filter(|(_, tensor)| tensor.update == kind) {
                let (rect, replicas) = (tensor.held(tp.0, tp.1), tensor.replicas(tp.1));
                let owned = tp.0.is_multiple_of(replicas) && held.tie != Tie::Last;
                let at = spans.last().map_or(0, |span| span.range().end);
                spans.push(Span { unit: held.unit, tensor: tensor.clone(), at, replicas, owned, held: rect });
            }
            *end = spans.last().map_or(0, |span| span.range().end);
        }
        let [decayed, trained, used] = ends;
        let len = used.next_multiple_of(ranks * VECTOR);
        let trained = if trained == used { len } else { trained };
        let units = held.iter().map(|held| held.unit).collect();
        let (tie, reduced_over) = (held[0].tie, held[0].reduced_over);
        Bucket { units, spans, decayed, trained, len, tie, reduced_over }
    }

    /// The ranks over which the optimizer's state of this bucket is sharded.
    pub fn sharded_over(&self) -> GroupKind {
        sharded_over(self.reduced_over)
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

    /// The rectangles of tensors that make up the elements `shard`. Padding belongs to no part.
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

    /// The elements of `shard`, counted from its start, that this rank counts in the gradient norm: trained ones that
    /// it owns, as few ranges as possible.
    pub fn owned(&self, shard: &Range<usize>) -> Vec<Range<usize>> {
        let counts = |span: &&Span| span.owned && span.tensor.update != Update::Frozen;
        let owned = self.spans.iter().filter(counts).map(|span| intersection(&span.range(), shard));
        joined(owned.map(|range| range.start.max(shard.start) - shard.start..range.end.max(shard.start) - shard.start))
    }

    /// The elements of the tensors that `which` selects, as few ranges as possible.
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

/// Merges adjacent ranges of an ascending list, and drops empty ones.
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

/// The ranks over which the optimizer's state of weights is sharded whose gradients are summed over `reduced_over`.
pub fn sharded_over(reduced_over: GroupKind) -> GroupKind {
    match reduced_over {
        GroupKind::ExpertData => GroupKind::ExpertOptimizer,
        _ => GroupKind::Optimizer,
    }
}

/// Groups the units of a chunk of layers, in order, into buckets of at least `min_len` elements (a chunk's last ones
/// may be shorter). A tied table has a bucket of its own; units that are reduced over different groups share no bucket.
///
/// `tp` is this rank's place among the tensor-parallel ranks, (rank, ranks); `ranks(kind)` is the number of ranks that
/// shard a bucket. The bucket boundaries are those of tensor-parallel rank 0, whose shards of the tensors are the
/// longest, so that all ranks have the same number of buckets.
pub fn plan(held: &[Held], tp: (usize, usize), ranks: impl Fn(GroupKind) -> usize, min_len: usize) -> Vec<Bucket> {
    let (mut buckets, mut open) = (Vec::new(), BTreeMap::<GroupKind, (Vec<&Held>, usize)>::new());
    let close = |held: &[&Held]| Bucket::new(held, tp, ranks(held[0].reduced_over));
    for held in held {
        if held.tie != Tie::Free {
            buckets.push(close(&[held]));
            continue;
        }
        let (units, len) = open.entry(held.reduced_over).or_default();
        units.push(held);
        *len += held.tensors.iter().map(|t| t.held(0, tp.1).len()).sum::<usize>();
        if *len >= min_len {
            buckets.push(close(units));
            open.remove(&held.reduced_over);
        }
    }
    buckets.extend(open.into_values().map(|(units, _)| close(&units)));
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;
    use crate::model::param_specs::{ExpertShare, Init, TpShard, tensors, units};
    use proptest::prelude::*;

    fn specs(units: usize, rows: usize, cols: usize) -> Vec<Held> {
        let spec = |name: String, dims: Vec<usize>, update| TensorSpec {
            name,
            dims,
            tp_shard: TpShard::Whole,
            update,
            init: Init::Normal,
            stored: None,
            packed: None,
        };
        let unit = |l| {
            let tensors = vec![
                spec(format!("{l}.a"), vec![rows, cols], Update::Decayed),
                spec(format!("{l}.norm"), vec![cols], Update::Plain),
                spec(format!("{l}.b"), vec![cols, rows], Update::Decayed),
                spec(format!("{l}.fixed"), vec![2, rows, cols], Update::Frozen),
            ];
            Held { unit: Unit::Layer(l), tensors, tie: Tie::Free, reduced_over: GroupKind::Data }
        };
        (0..units).map(unit).collect()
    }

    proptest! {
        /// Over all ranks and buckets, the parts cover every element of every tensor exactly once, the decayed ones
        /// first and the frozen ones last.
        #[test]
        fn shards_hold_every_element_once(
            units in 1usize..6,
            rows in 1usize..9,
            cols in 1usize..9,
            ranks in 1usize..6,
            min_len in 1usize..400,
        ) {
            let units = specs(units, rows, cols);
            let mut seen = std::collections::HashMap::<(String, usize, usize), usize>::new();
            for bucket in plan(&units, (0, 1), |_| ranks, min_len) {
                prop_assert!(bucket.len - bucket.used() < ranks * VECTOR);
                for rank in 0..ranks {
                    let shard = bucket.shard(rank, ranks);
                    for Part { at, tensor, rect, .. } in bucket.parts(&shard) {
                        let at = shard.start + at;
                        let update = match at {
                            _ if at < bucket.decayed => Update::Decayed,
                            _ if at < bucket.trained => Update::Plain,
                            _ => Update::Frozen,
                        };
                        prop_assert_eq!(update, tensor.update);
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

        /// Over the ranks of a layout, every element of the model has exactly one owner, however many replicas there
        /// are, and the tensor-parallel ranks have the same number of buckets.
        #[test]
        fn ranks_own_every_element_once(
            tp_log in 0usize..4,
            kv_log in 0usize..4,
            dp in 1usize..4,
            vocab in 16usize..40,
            min_len in 1usize..4000,
        ) {
            let (tp, model) = (1 << tp_log, model(1 << kv_log, vocab));
            let held = |unit| {
                let tensors = tensors(&model, unit, ExpertShare::ALL);
                Held { unit, tensors, tie: Tie::Free, reduced_over: GroupKind::Data }
            };
            let held: Vec<Held> = units(&model).into_iter().map(held).collect();
            let buckets: Vec<Vec<Bucket>> = (0..tp).map(|rank| plan(&held, (rank, tp), |_| dp, min_len)).collect();
            let mut seen = std::collections::HashMap::<(String, usize, usize), usize>::new();
            for bucket in buckets.iter().flatten() {
                for shard in (0..dp).map(|rank| bucket.shard(rank, dp)) {
                    let owned = bucket.owned(&shard);
                    for part in bucket.parts(&shard) {
                        let end = part.at + part.rect.len();
                        let inside = owned.iter().any(|range| range.contains(&part.at) && end <= range.end);
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

    /// Experts, for example, are reduced over fewer ranks than the layers around them.
    #[test]
    fn units_reduced_over_other_groups_share_no_bucket() {
        let mut units = specs(3, 4, 4);
        units[1].reduced_over = GroupKind::Tensor;
        let ranks = |kind| if kind == GroupKind::Data { 4 } else { 2 };
        let buckets = plan(&units, (0, 1), ranks, usize::MAX);
        let kinds: Vec<_> = buckets.iter().map(|b| (b.units.len(), b.reduced_over)).collect();
        assert_eq!(kinds, [(1, GroupKind::Tensor), (2, GroupKind::Data)]);
        let padded: Vec<_> =
            buckets.iter().map(|b| b.used().next_multiple_of(ranks(b.reduced_over) * VECTOR)).collect();
        assert_eq!(buckets.iter().map(|b| b.len).collect::<Vec<_>>(), padded);
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
