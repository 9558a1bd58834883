//! The distributed optimizer (ZeRO-1, Rajbhandari et al. 2020): each data-parallel rank clips and
//! updates its shard of every bucket, f32 masters and moments, and the weights are gathered again.

use crate::backend::{Acc, Act, AdamW, Backend, Collectives};
use crate::layout::buckets::Bucket;
use crate::stage::params::{ParamLayout, Params};
use std::ops::Range;
use std::rc::Rc;

/// Optimizer state of this rank's part of one bucket, each `[shard, 1]`.
pub struct Shard<B: Backend> {
    /// Which elements of the bucket.
    pub range: Range<usize>,
    pub master: Acc<B>,
    pub m: Acc<B>,
    pub v: Acc<B>,
}

/// The state of all buckets. The groups are of one where there is nothing to share.
pub struct Optim<B: Backend> {
    layout: Rc<ParamLayout>,
    pub shards: Vec<Shard<B>>,
    /// Of each shard the elements that this rank answers for.
    owned: Vec<Vec<Range<usize>>>,
    /// The ranks among which a bucket is cut.
    group: B::Group,
    pub ownership: Ownership,
}

/// Who counts a shard in the norm and saves it, where several data-parallel ranks may hold the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    Owner,
    Replica,
}

impl<B: Backend> Optim<B> {
    /// Zeros; the masters are loaded next, and [`Optim::cast_main_params`] makes weights of them. `ownership` says
    /// whether another data-parallel rank holds the same shards and answers for them.
    pub fn new(b: &B, layout: Rc<ParamLayout>, group: B::Group, ownership: Ownership) -> Self {
        let zeros = |len| {
            let mut x = b.alloc(len, 1);
            b.zero(&mut x);
            x
        };
        let shards = layout.buckets.iter().map(|bucket| {
            let range = bucket.shard(group.rank(), group.size());
            let len = range.len();
            Shard { range, master: zeros(len), m: zeros(len), v: zeros(len) }
        });
        let shards: Vec<Shard<B>> = shards.collect();
        let owned = |(bucket, shard): (&Bucket, &Shard<B>)| match ownership {
            Ownership::Owner => bucket.owned(&shard.range),
            Ownership::Replica => Vec::new(),
        };
        let owned = layout.buckets.iter().zip(&shards).map(owned).collect();
        Optim { shards, owned, layout, group, ownership }
    }

    /// Rounds the masters to weights and starts their all-gather.
    pub fn cast_main_params(&self, b: &B, params: &mut Params<B>) {
        for (i, shard) in self.shards.iter().enumerate() {
            write_and_gather(b, &self.group, params, (i, &shard.range), |weights| b.round(&shard.master, weights));
        }
    }

    /// This rank's part of the square of the gradients' norm, `[1, 1]`: over all ranks each parameter
    /// counts once.
    pub fn square(&self, b: &B, grads: &[Acc<B>]) -> Acc<B> {
        let mut square = b.alloc(1, 1);
        b.zero(&mut square);
        for (g, owned) in grads.iter().zip(&self.owned) {
            owned.iter().for_each(|range| b.sum_squares(g, range.clone(), &mut square));
        }
        square
    }

    /// AdamW on every shard with the gradients scaled by `factor`; the all-gathers of the new weights
    /// are left under way.
    pub fn update(&mut self, b: &B, params: &mut Params<B>, grads: Vec<Acc<B>>, factor: &Acc<B>, hp: AdamW) {
        for (i, (shard, g)) in self.shards.iter_mut().zip(grads).enumerate() {
            let decayed = self.layout.buckets[i].decayed.saturating_sub(shard.range.start).min(shard.range.len());
            let Shard { range, master, m, v } = shard;
            write_and_gather(b, &self.group, params, (i, range), |weights| {
                b.adamw(&g, factor, master, m, v, weights, AdamW { decayed, ..hp });
            });
        }
    }
}

/// Lets `write` make this rank's shard of a bucket's weights in its place, and starts the gather of all shards.
fn write_and_gather<B: Backend>(
    b: &B,
    group: &B::Group,
    params: &mut Params<B>,
    (bucket, shard): (usize, &Range<usize>),
    write: impl FnOnce(&mut Act<B>),
) {
    let mut weights = params.begin_write(bucket);
    write(&mut weights.view_mut(shard.start, shard.len(), 1));
    params.finish_write(bucket, group.all_gather_within(b, weights));
}
