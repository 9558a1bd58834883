//! Main gradients: flat f32 buckets that the micro-batches accumulate into. When the last gradient of a bucket is
//! complete, its reduce-scatter over the data-parallel ranks starts, inside the backward pass.

use crate::backend::{Acc, Backend, Collectives, Elem, Pending, Tensor};
use crate::config::Precision;
use crate::layers::{block, embedding, head};
use crate::layout::buckets::Span;
use crate::model::param_specs::Unit;
use crate::stage::groups::BucketGroups;
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
    /// Accumulates gradients, which `open` of the bucket's units still have to complete.
    Open { sum: Acc<B>, open: usize },
    /// Taken out while its reduction is started.
    Leaving,
    /// Its reduction has begun.
    Reducing(Sum<B>),
}

/// A sum over the ranks in flight.
enum Sum<B: Backend> {
    Exact(Pending<B, f32>),
    /// The sum is computed in the activations' precision.
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

/// How the ranks sum a bucket: first the replicas that tensor-parallel ranks hold, over these ranks; then the whole
/// bucket, over its data-parallel ranks ([`BucketGroups`]).
pub struct Reduce<B: Backend> {
    layout: Rc<ParamLayout>,
    replicas: Vec<Replicas<B>>,
    groups: BucketGroups<B>,
    /// Whether each data-parallel rank keeps its shard of the sum (the distributed optimizer), or all of it.
    sharded: bool,
    /// The precision of the sum over data-parallel ranks.
    precision: Precision,
}

/// Elements that all ranks of `group` hold while each rank has only a part of their gradient: norm weights under
/// sequence parallelism (from its rows), and key/value heads if there are fewer of them than ranks (from its query
/// heads).
struct Replicas<B: Backend> {
    group: B::Group,
    /// The ranges of these elements in each bucket.
    ranges: Vec<Vec<Range<usize>>>,
}

impl<B: Backend> Reduce<B> {
    /// A reduce-scatter over the data-parallel ranks: each keeps its shard.
    pub fn scatter(layout: Rc<ParamLayout>, groups: BucketGroups<B>) -> Self {
        Reduce { layout, replicas: Vec::new(), groups, sharded: true, precision: Precision::F32 }
    }

    /// An all-reduce over the data-parallel ranks: each keeps the whole sum.
    pub fn all(layout: Rc<ParamLayout>, groups: BucketGroups<B>) -> Self {
        Reduce { sharded: false, ..Reduce::scatter(layout, groups) }
    }

    /// Sums over the data-parallel ranks in this precision: bf16 halves the traffic.
    pub fn precision(self, precision: Precision) -> Self {
        Reduce { precision, ..self }
    }

    /// First sums the tensors that `which` selects over `group`, whose ranks hold replicas of them.
    pub fn replicas(mut self, group: B::Group, which: impl Fn(&Span) -> bool) -> Self {
        if group.size() > 1 {
            let ranges = self.layout.buckets.iter().map(|bucket| bucket.ranges(&which)).collect();
            self.replicas.push(Replicas { group, ranges });
        }
        self
    }

    fn start(&self, b: &B, bucket: usize, mut sum: Acc<B>) -> Sum<B> {
        for Replicas { group, ranges } in &self.replicas {
            let ranges = &ranges[bucket];
            if !ranges.is_empty() {
                let part = group.all_reduce(b, b.pick(&sum, ranges)).wait();
                b.put(&part, ranges, &mut sum);
            }
        }
        let group = self.groups.of(&self.layout.buckets[bucket]);
        // A single rank sends nothing, so nothing is rounded.
        if self.precision == Precision::F32 || group.size() == 1 {
            return Sum::Exact(self.over_group(b, group, sum));
        }
        let mut rounded = b.alloc(sum.rows(), sum.cols());
        b.round(&sum, &mut rounded);
        drop(sum);
        Sum::Rounded(self.over_group(b, group, rounded))
    }

    fn over_group<T: Elem>(&self, b: &B, group: &B::Group, sum: Tensor<B, T>) -> Pending<B, T> {
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

    /// The sums of all buckets, of which no reduction has begun.
    pub fn sums(&self) -> impl Iterator<Item = &Acc<B>> {
        self.buckets.iter().map(|bucket| match bucket {
            Bucket::Open { sum, .. } => sum,
            Bucket::Leaving | Bucket::Reducing(_) => panic!("the reduction of a bucket has begun"),
        })
    }

    /// Marks the gradients of `unit` as complete after the last micro-batch. When all units of a bucket are complete,
    /// its reduction starts.
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

    /// Waits for the sums over the ranks and returns this rank's shards, bucket by bucket. The shard of a tied table is
    /// also summed over its two stages, the group `tied`.
    pub fn wait(self, b: &B, tied: &B::Group) -> Vec<Acc<B>> {
        let wait = |bucket| match bucket {
            Bucket::Reducing(sum) => sum.wait(b),
            Bucket::Open { open, .. } => panic!("{open} units of a bucket are not done"),
            Bucket::Leaving => unreachable!("a bucket starts its reduction in one call"),
        };
        let sum = |(i, shard)| match self.layout.tied_bucket() == Some(i) {
            true => tied.all_reduce(b, shard).wait(),
            false => shard,
        };
        self.buckets.into_iter().map(wait).enumerate().map(sum).collect()
    }
}
