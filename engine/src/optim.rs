//! The distributed optimizer (ZeRO-1, Rajbhandari et al. 2020): each data-parallel rank clips and
//! updates its shard of every bucket, f32 masters and moments, and the weights are gathered again.

use crate::backend::{Acc, AdamW, Backend, Collectives};
use crate::params::{Layout, Params};
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
    layout: Rc<Layout>,
    pub shards: Vec<Shard<B>>,
    /// The ranks among which a bucket is cut.
    group: B::Group,
}

impl<B: Backend> Optim<B> {
    /// Zeros; the masters are loaded next, and [`Optim::publish`] makes weights of them.
    pub fn new(b: &B, layout: Rc<Layout>, group: B::Group) -> Self {
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
        Optim { shards: shards.collect(), layout, group }
    }

    /// Rounds the masters to weights and starts their all-gather.
    pub fn publish(&self, b: &B, params: &mut Params<B>) {
        for (i, shard) in self.shards.iter().enumerate() {
            params.drop_bucket(i);
            params.set_bucket(i, self.group.all_gather(b, b.round(&shard.master)));
        }
    }

    /// The square of the gradients' norm over all ranks, `[1, 1]`.
    pub fn square(&self, b: &B, grads: &[Acc<B>]) -> Acc<B> {
        let mut square = b.alloc(1, 1);
        b.zero(&mut square);
        for g in grads {
            b.sum_squares(g, 0..g.len(), &mut square);
        }
        self.group.all_reduce(b, square).wait()
    }

    /// AdamW on every shard with the gradients scaled by `factor`; the all-gathers of the new weights
    /// are left under way.
    pub fn update(&mut self, b: &B, params: &mut Params<B>, grads: Vec<Acc<B>>, factor: &Acc<B>, hp: AdamW) {
        for (i, (shard, g)) in self.shards.iter_mut().zip(grads).enumerate() {
            let decayed = self.layout.buckets[i].decayed.saturating_sub(shard.range.start).min(shard.range.len());
            params.drop_bucket(i);
            let w = b.adamw(&g, factor, &mut shard.master, &mut shard.m, &mut shard.v, AdamW { decayed, ..hp });
            params.set_bucket(i, self.group.all_gather(b, w));
        }
    }
}
