//! The distributed optimizer (ZeRO-1, Rajbhandari et al. 2020): each data-parallel rank clips and updates its shard of
//! every bucket (f32 main parameters and moments), and the weights are gathered again.

use crate::backend::{Acc, Act, AdamW, Backend, Collectives};
use crate::checkpoint::StateKind;
use crate::layout::buckets::Bucket;
use crate::stage::groups::BucketGroups;
use crate::stage::params::{ParamLayout, Params};
use std::ops::Range;
use std::rc::Rc;

/// Optimizer state of this rank's part of one bucket.
pub struct Shard<B: Backend> {
    /// The elements of the bucket.
    pub range: Range<usize>,
    /// Whether this data-parallel rank counts it in the gradient norm and saves it, since several may hold the same.
    pub owned: bool,
    /// Each part with its name, `[shard, 1]`: the parts of [`STATE`], in that order.
    pub state: Vec<(StateKind, Acc<B>)>,
}

/// The state that AdamW keeps for each parameter.
pub const STATE: [StateKind; 3] = [StateKind::Master, StateKind::M, StateKind::V];

/// The state of all buckets. If there is nothing to shard, a group has one rank.
pub struct Optim<B: Backend> {
    layout: Rc<ParamLayout>,
    pub shards: Vec<Shard<B>>,
    /// The elements of each shard that this rank counts in the gradient norm.
    counted: Vec<Vec<Range<usize>>>,
    groups: BucketGroups<B>,
}

impl<B: Backend> Optim<B> {
    /// Creates state of zeros. The main parameters are loaded next, and [`Optim::cast_main_params`] makes the weights
    /// from them. `owns(bucket)` says whether this rank, of those that hold the same shard, owns it.
    pub fn new(b: &B, layout: Rc<ParamLayout>, groups: BucketGroups<B>, owns: impl Fn(&Bucket) -> bool) -> Self {
        let zeros = |len| {
            let mut x = b.alloc(len, 1);
            b.zero(&mut x);
            x
        };
        let shard = |bucket: &Bucket| {
            let group = groups.of(bucket);
            let range = bucket.shard(group.rank(), group.size());
            Shard { state: STATE.map(|part| (part, zeros(range.len()))).into(), range, owned: owns(bucket) }
        };
        let shards: Vec<Shard<B>> = layout.buckets.iter().map(shard).collect();
        let counted = |(bucket, shard): (&Bucket, &Shard<B>)| match shard.owned {
            true => bucket.owned(&shard.range),
            false => Vec::new(),
        };
        let counted = layout.buckets.iter().zip(&shards).map(counted).collect();
        Optim { shards, counted, layout, groups }
    }

    /// Casts the main parameters to the weights' precision and starts their all-gather.
    pub fn cast_main_params(&self, b: &B, params: &mut Params<B>) {
        for (i, Shard { range, state, .. }) in self.shards.iter().enumerate() {
            let (group, main) = (self.groups.of(&self.layout.buckets[i]), &state[0].1);
            write_and_gather(b, group, params, (i, range.clone()), |weights| b.round(main, weights));
        }
    }

    /// This rank's part of the squared norm of the gradients, `[1, 1]`: over all ranks each parameter counts once.
    pub fn square(&self, b: &B, grads: &[Acc<B>]) -> Acc<B> {
        let mut square = b.alloc(1, 1);
        b.zero(&mut square);
        for (g, counted) in grads.iter().zip(&self.counted) {
            counted.iter().for_each(|range| b.sum_squares(g, range.clone(), &mut square));
        }
        square
    }

    /// AdamW on every shard with the gradients scaled by `factor`. The all-gathers of the new weights are in flight
    /// afterwards.
    pub fn update(&mut self, b: &B, params: &mut Params<B>, grads: Vec<Acc<B>>, factor: &Acc<B>, hp: AdamW) {
        for (i, (shard, g)) in self.shards.iter_mut().zip(grads).enumerate() {
            let bucket = &self.layout.buckets[i];
            let in_shard = |end: usize| end.saturating_sub(shard.range.start).min(shard.range.len());
            let (hp, n) = (AdamW { decayed: in_shard(bucket.decayed), ..hp }, in_shard(bucket.trained));
            let range = shard.range.start..shard.range.start + n;
            let [(_, main), (_, m), (_, v)] = &mut shard.state[..] else {
                panic!("{} parts of optimizer state, AdamW has {}", shard.state.len(), STATE.len())
            };
            write_and_gather(b, self.groups.of(bucket), params, (i, range), |weights| {
                let [mut main, mut m, mut v] = [main, m, v].map(|part| part.view_mut(0, n, 1));
                b.adamw(&g.view(0, n, 1), factor, &mut main, &mut m, &mut v, weights, hp);
            });
        }
    }
}

/// Lets `write` overwrite a range of a bucket's weights, and starts the all-gather of all shards.
fn write_and_gather<B: Backend>(
    b: &B,
    group: &B::Group,
    params: &mut Params<B>,
    (bucket, range): (usize, Range<usize>),
    write: impl FnOnce(&mut Act<B>),
) {
    let mut weights = params.begin_write(bucket);
    write(&mut weights.view_mut(range.start, range.len(), 1));
    params.finish_write(bucket, group.all_gather_within(b, weights));
}
