//! Main gradients: flat f32 buckets that the micro-batches add to. When the last gradient of a
//! bucket is in, its sum over the data-parallel ranks starts, inside the backward pass.

use crate::backend::{Acc, Backend, Collectives, Elem, Pending, Tensor};
use crate::config::Precision;
use crate::layers::{block, head};
use crate::layout::buckets::Span;
use crate::model::param_specs::Unit;
use crate::stage::params::{GradViews, ParamLayout};
use std::ops::Range;
use std::rc::Rc;

/// The gradients of one step.
pub struct Grads<B: Backend> {
    layout: Rc<ParamLayout>,
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
    Sent(Sum<B>),
}

/// A sum over the ranks under way.
enum Sum<B: Backend> {
    Exact(Pending<B, f32>),
    /// Added up in the activations' precision.
    Rounded(Pending<B, B::Act>),
}

impl<B: Backend> Sum<B> {
    fn wait(self, b: &B) -> Acc<B> {
        match self {
            Sum::Exact(pending) => pending.wait(),
            Sum::Rounded(pending) => {
                let rounded = pending.wait();
                let mut sum = b.alloc(rounded.rows(), rounded.cols());
                b.widen(&rounded, &mut sum);
                sum
            }
        }
    }
}

/// How the ranks add up a bucket: first what tensor-parallel ranks hold copies of, then over the
/// data-parallel ranks.
pub struct Reduce<B: Backend> {
    copies: Vec<Copies<B>>,
    data: B::Group,
    /// Each data-parallel rank keeps its shard of the sum (the distributed optimizer), or all of it.
    sharded: bool,
    /// What the data-parallel ranks add up in.
    precision: Precision,
}

/// Elements that the ranks of `group` all hold while each has seen a part of their gradient: norm
/// weights under sequence parallelism (other rows), key/value heads of which there are fewer than
/// ranks (other query heads).
struct Copies<B: Backend> {
    group: B::Group,
    /// By bucket.
    ranges: Vec<Vec<Range<usize>>>,
}

impl<B: Backend> Reduce<B> {
    /// Over the data-parallel ranks, each keeping its shard.
    pub fn scatter(data: B::Group) -> Self {
        Reduce { copies: Vec::new(), data, sharded: true, precision: Precision::F32 }
    }

    /// Over the data-parallel ranks, each keeping all.
    pub fn all(data: B::Group) -> Self {
        Reduce { copies: Vec::new(), data, sharded: false, precision: Precision::F32 }
    }

    /// Adds up over the data-parallel ranks in this precision: half the bytes travel as bf16.
    pub fn precision(self, precision: Precision) -> Self {
        Reduce { precision, ..self }
    }

    /// Sums what `which` says over `group` first.
    pub fn copies(mut self, layout: &ParamLayout, group: B::Group, which: impl Fn(&Span) -> bool) -> Self {
        if group.size() > 1 {
            let ranges = layout.buckets.iter().map(|bucket| bucket.ranges(&which)).collect();
            self.copies.push(Copies { group, ranges });
        }
        self
    }

    fn start(&self, b: &B, bucket: usize, mut sum: Acc<B>) -> Sum<B> {
        for Copies { group, ranges } in &self.copies {
            let ranges = &ranges[bucket];
            if !ranges.is_empty() {
                let part = group.all_reduce(b, b.pick(&sum, ranges)).wait();
                b.put(&part, ranges, &mut sum);
            }
        }
        // A rank alone has nothing to send.
        if self.precision == Precision::F32 || self.data.size() == 1 {
            return Sum::Exact(self.over_data(b, sum));
        }
        let mut rounded = b.alloc(sum.rows(), sum.cols());
        b.round(&sum, &mut rounded);
        drop(sum);
        Sum::Rounded(self.over_data(b, rounded))
    }

    fn over_data<T: Elem>(&self, b: &B, sum: Tensor<B, T>) -> Pending<B, T> {
        match self.sharded {
            true => self.data.reduce_scatter(b, sum),
            false => self.data.all_reduce(b, sum),
        }
    }
}

impl<B: Backend> Grads<B> {
    /// Zeros.
    pub fn new(b: &B, layout: Rc<ParamLayout>) -> Self {
        let buckets = layout.buckets.iter().map(|bucket| {
            let mut sum = b.alloc(bucket.len, 1);
            b.zero(&mut sum);
            Bucket::Open { sum, open: bucket.units.len() }
        });
        Grads { buckets: buckets.collect(), layout }
    }

    pub fn layer(&mut self, l: usize) -> block::Grads<'_, B> {
        self.views().layer(l)
    }

    /// The table's gradient and its first id.
    pub fn embedding(&mut self) -> (crate::backend::TensorViewMut<'_, B, f32>, usize) {
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

    /// The last micro-batch's gradients of `unit` are in: a bucket that waits for no other is sent.
    pub fn unit_done(&mut self, b: &B, unit: Unit, reduce: &Reduce<B>) {
        let layout = self.layout.clone();
        layout.finished_by(unit).for_each(|unit| self.close(b, unit, reduce));
    }

    fn close(&mut self, b: &B, unit: Unit, reduce: &Reduce<B>) {
        let i = self.layout.bucket_of(unit);
        let Bucket::Open { open, .. } = &mut self.buckets[i] else {
            panic!("{unit:?} is done twice");
        };
        *open -= 1;
        if *open > 0 {
            return;
        }
        if let Bucket::Open { sum, .. } = std::mem::replace(&mut self.buckets[i], Bucket::Leaving) {
            self.buckets[i] = Bucket::Sent(reduce.start(b, i, sum));
        }
    }

    /// The sums over the ranks, bucket by bucket: this rank's shards. A tied table's are summed over its
    /// two stages, the group `tied`.
    pub fn wait(self, b: &B, tied: &B::Group) -> Vec<Acc<B>> {
        let wait = |bucket| match bucket {
            Bucket::Sent(sum) => sum.wait(b),
            Bucket::Open { open, .. } => panic!("{open} slots of a bucket are not done"),
            Bucket::Leaving => unreachable!("a bucket is sent in one go"),
        };
        let sum = |(i, shard)| match self.layout.tied_bucket() == Some(i) {
            true => tied.all_reduce(b, shard).wait(),
            false => shard,
        };
        self.buckets.into_iter().map(wait).enumerate().map(sum).collect()
    }
}
