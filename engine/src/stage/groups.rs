//! All groups of ranks that a rank is in, created before anything else allocates memory on a device.

use crate::backend::Backend;
use crate::config::Config;
use crate::layout::buckets::{self, Bucket};
use crate::layout::mesh::GroupKind;
use crate::layout::rank_layout::RankLayout;

/// One communicator for each use of a group. Uses with few calls share a stream (`GroupKind::lane`).
pub struct Groups<B: Backend> {
    pub tensor: B::Group,
    /// Ranks that hold replicas of the same key/value heads.
    pub kv: B::Group,
    /// The ranks over which a bucket's gradients are reduced.
    pub data: BucketGroups<B>,
    pub activations: B::Group,
    pub gradients: B::Group,
    /// The two stages of a tied table.
    pub tied: B::Group,
    pub world: B::Group,
    /// The ranks among which a bucket's optimizer state is sharded.
    pub optimizer: BucketGroups<B>,
    /// Data-parallel ranks that together hold all experts.
    pub experts: B::Group,
    /// A second communicator of the tensor-parallel ranks, for the gradients of tensors that all of them hold whole,
    /// where each rank has a part: of its rows, under sequence parallelism, or of its heads.
    pub whole: Option<B::Group>,
}

/// The groups of a rank for its buckets, by the kind of group that a bucket names.
pub struct BucketGroups<B: Backend>(Vec<(GroupKind, B::Group)>);

impl<B: Backend> BucketGroups<B> {
    /// The group of `bucket`.
    pub fn of(&self, bucket: &Bucket) -> &B::Group {
        let found = self.0.iter().find(|(kind, _)| *kind == bucket.reduced_over);
        &found.unwrap_or_else(|| panic!("there is no group of kind {:?} for a bucket", bucket.reduced_over)).1
    }
}

impl<B: Backend> Groups<B> {
    /// All ranks call this together: creating a group takes all ranks, in the same order everywhere.
    pub fn new(b: &B, config: &Config, rank_layout: &RankLayout) -> Self {
        let group = |kind| b.group(kind, &rank_layout.members(kind));
        let [tensor, kv] = [GroupKind::Tensor, GroupKind::KvHeads].map(group);
        let kinds =
            || [GroupKind::Data].into_iter().chain((rank_layout.experts.ranks > 1).then_some(GroupKind::ExpertData));
        let data = BucketGroups(kinds().map(|kind| (kind, group(kind))).collect());
        let [activations, gradients, tied] = [GroupKind::Activations, GroupKind::Gradients, GroupKind::Tied].map(group);
        let world = group(GroupKind::World);
        let optimizer = BucketGroups(kinds().map(|kind| (kind, group(buckets::sharded_over(kind)))).collect());
        let experts = group(GroupKind::Experts);
        let partial = config.model.layers().any(|layer| layer.head_norms || layer.experts().is_some());
        let whole = (config.parallel.sequence_parallel || partial).then(|| group(GroupKind::Tensor));
        Groups { tensor, kv, data, activations, gradients, tied, world, optimizer, experts, whole }
    }
}
