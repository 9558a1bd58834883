//! Main gradients: flat f32 buckets that the micro-batches accumulate into. When the last gradient of a
//! bucket is in, its reduce-scatter over the data-parallel ranks starts, inside the backward pass.

use crate::backend::{Acc, Backend, Collectives, Elem, Pending, Tensor};
use crate::config::Precision;
use crate::layers::{block, embedding, head};
use crate::layout::buckets::Span;
use crate::model::param_specs::Unit;
use crate::stage::groups::ReplicaGroups;
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
    Open { sum: Acc<B>, open: usize },
    /// Between the two.
    Leaving,
    /// Its reduction has begun.
    Reducing(Sum<B>),
}

/// A sum over the ranks in flight.
enum Sum<B: Backend> {
    Exact(Pending<B, f32>),
    /// Summed in the activations' precision.
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

/// How the ranks sum a bucket: first, over tensor-parallel ranks, the tensors of which they hold copies; then
/// everything over the bucket's replicas.
pub struct Reduce<B: Backend> {
    layout: Rc<ParamLayout>,
    copies: Vec<Copies<B>>,
    replicas: ReplicaGroups<B>,
    /// Each replica keeps its shard of the sum (the distributed optimizer), or all of it.
    sharded: bool,
    /// The precision in which replicas are summed.
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
    /// A reduce-scatter over the replicas, each keeping its shard.
    pub fn scatter(layout: Rc<ParamLayout>, replicas: ReplicaGroups<B>) -> Self {
        Reduce { layout, copies: Vec::new(), replicas, sharded: true, precision: Precision::F32 }
    }

    /// An all-reduce over the replicas, each keeping the whole sum.
    pub fn all(layout: Rc<ParamLayout>, replicas: ReplicaGroups<B>) -> Self {
        Reduce { sharded: false, ..Reduce::scatter(layout, replicas) }
    }

    /// Sums over the replicas in this precision: bf16 halves the traffic.
    pub fn precision(self, precision: Precision) -> Self {
        Reduce { precision, ..self }
    }

    /// Sums the tensors that `which` selects over `group` first.
    pub fn copies(mut self, group: B::Group, which: impl Fn(&Span) -> bool) -> Self {
        if group.size() > 1 {
            let ranges = self.layout.buckets.iter().map(|bucket| bucket.ranges(&which)).collect();
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
        let group = self.replicas.of(&self.layout.buckets[bucket]);
        // A single replica sends nothing, so nothing is rounded.
        if self.precision == Precision::F32 || group.size() == 1 {
            return Sum::Exact(self.over_replicas(b, group, sum));
        }
        let mut rounded = b.alloc(sum.rows(), sum.cols());
        b.round(&sum, &mut rounded);
        drop(sum);
        Sum::Rounded(self.over_replicas(b, group, rounded))
    }

    fn over_replicas<T: Elem>(&self, b: &B, group: &B::Group, sum: Tensor<B, T>) -> Pending<B, T> {
        match self.sharded {
            true => group.reduce_scatter(b, sum),
            false => group.all_reduce(b, sum),
        }
    }
}

impl<B: Backend> Grads<B> {
    /// Buckets of zeros.
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

    pub fn embedding(&mut self) -> embedding::Grads<'_, B> {
        self.views().embedding()
    }

    pub fn head(&mut self) -> head::Grads<'_, B> {
        self.views().head()
    }

    fn views(&mut self) -> GradViews<'_, B> {
        let buckets = self.buckets.iter_mut().map(|bucket| match bucket {
            Bucket::Open { sum, .. } => Some(sum),
            Bucket::Leaving | Bucket::Reducing(_) => None,
        });
        GradViews { layout: &self.layout, buckets: buckets.collect() }
    }

    /// The last micro-batch's gradients of `unit` are in: a bucket that expects no others starts its reduction.
    pub fn unit_done(&mut self, b: &B, unit: Unit, reduce: &Reduce<B>) {
        let layout = self.layout.clone();
        layout.finished_by(unit).for_each(|unit| self.close(b, unit, reduce));
    }

    fn close(&mut self, b: &B, unit: Unit, reduce: &Reduce<B>) {
        let i = self.layout.bucket_of(unit);
        let Bucket::Open { open, .. } = &mut self.buckets[i] else {
            panic!("the gradients of {unit:?} are complete twice");
        };
        *open -= 1;
        if *open > 0 {
            return;
        }
        if let Bucket::Open { sum, .. } = std::mem::replace(&mut self.buckets[i], Bucket::Leaving) {
            self.buckets[i] = Bucket::Reducing(reduce.start(b, i, sum));
        }
    }

    /// The sums over the ranks, bucket by bucket: this rank's shards. Those of a tied table are also summed over its
    /// two stages, the group `tied`.
    pub fn wait(self, b: &B, tied: &B::Group) -> Vec<Acc<B>> {
        let wait = |bucket| match bucket {
            Bucket::Reducing(sum) => sum.wait(b),
            Bucket::Open { open, .. } => panic!("{open} slots of a bucket are not done"),
            Bucket::Leaving => unreachable!("a bucket starts its reduction in one call"),
        };
        let sum = |(i, shard)| match self.layout.tied_bucket() == Some(i) {
            true => tied.all_reduce(b, shard).wait(),
            false => shard,
        };
        self.buckets.into_iter().map(wait).enumerate().map(sum).collect()
    }
}
