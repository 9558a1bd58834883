//! Main gradients: flat f32 buckets that the micro-batches add to. When the last gradient of a
//! bucket is in, its sum over the data-parallel ranks starts, inside the backward pass.

use crate::backend::{Acc, Backend, Collectives, Pending};
use crate::inventory::Slot;
use crate::layers::{block, head};
use crate::params::{GradViews, Layout};
use std::rc::Rc;

/// The gradients of one step.
pub struct Grads<B: Backend> {
    layout: Rc<Layout>,
    buckets: Vec<Bucket<B>>,
}

/// One bucket, `[len, 1]`.
enum Bucket<B: Backend> {
    /// Added to; `open` of its slots still expect gradients.
    Open {
        sum: Acc<B>,
        open: usize,
    },
    /// Between the two.
    Leaving,
    Sent(Pending<B, f32>),
}

/// How the data-parallel ranks add up a bucket.
pub enum Reduce<'a, B: Backend> {
    /// Each keeps its shard of the sum (the distributed optimizer).
    Scatter(&'a B::Group),
    /// Each keeps all of it.
    All(&'a B::Group),
}

impl<B: Backend> Grads<B> {
    /// Zeros.
    pub fn new(b: &B, layout: Rc<Layout>) -> Self {
        let buckets = layout.buckets.iter().map(|bucket| {
            let mut sum = b.alloc(bucket.len, 1);
            b.zero(&mut sum);
            Bucket::Open { sum, open: bucket.slots.len() }
        });
        Grads { buckets: buckets.collect(), layout }
    }

    pub fn layer(&mut self, l: usize) -> block::Grads<'_, B> {
        self.views().layer(l)
    }

    /// The table's gradient and its first id.
    pub fn embedding(&mut self) -> (crate::backend::LentMut<'_, B, f32>, usize) {
        self.views().embedding()
    }

    pub fn head(&mut self) -> head::Grads<'_, B> {
        self.views().head()
    }

    fn views(&mut self) -> GradViews<'_, B> {
        let buckets = self.buckets.iter_mut().map(|bucket| match bucket {
            Bucket::Open { sum, .. } => Some(sum),
            Bucket::Leaving | Bucket::Sent(_) => None,
        });
        GradViews { layout: &self.layout, buckets: buckets.collect() }
    }

    /// The last micro-batch's gradients of `slot` are in: a bucket that waits for no other is sent.
    pub fn slot_done(&mut self, b: &B, slot: Slot, reduce: &Reduce<B>) {
        let i = self.layout.bucket_of(slot);
        let Bucket::Open { open, .. } = &mut self.buckets[i] else {
            panic!("{slot:?} is done twice");
        };
        *open -= 1;
        if *open > 0 {
            return;
        }
        if let Bucket::Open { sum, .. } = std::mem::replace(&mut self.buckets[i], Bucket::Leaving) {
            self.buckets[i] = Bucket::Sent(match reduce {
                Reduce::Scatter(group) => group.reduce_scatter(b, sum),
                Reduce::All(group) => group.all_reduce(b, sum),
            });
        }
    }

    /// The sums over the data-parallel ranks, bucket by bucket: this rank's shards.
    pub fn wait(self) -> Vec<Acc<B>> {
        let wait = |bucket| match bucket {
            Bucket::Sent(pending) => pending.wait(),
            Bucket::Open { open, .. } => panic!("{open} slots of a bucket are not done"),
            Bucket::Leaving => unreachable!("a bucket is sent in one go"),
        };
        self.buckets.into_iter().map(wait).collect()
    }
}
