//! All groups that a rank is in, made before anything else takes of a device's memory.

use crate::backend::Backend;
use crate::config::Config;
use crate::layout::mesh::GroupKind;
use crate::layout::rank_layout::RankLayout;

/// A communicator for each use of a group, so that what one has under way never waits for another.
pub struct Groups<B: Backend> {
    pub tensor: B::Group,
    /// Ranks that hold the same key/value heads.
    pub kv: B::Group,
    pub data: B::Group,
    pub activations: B::Group,
    pub gradients: B::Group,
    /// The two stages of a tied table.
    pub tied: B::Group,
    pub world: B::Group,
    /// The ranks among which the optimizer is cut.
    pub optimizer: B::Group,
    /// The tensor-parallel ranks once more, for the norms' gradients, where each saw other rows.
    pub norms: Option<B::Group>,
}

impl<B: Backend> Groups<B> {
    /// Of the rank at `rank_layout`. In one order on all ranks: making a group takes all of them.
    pub fn new(b: &B, config: &Config, rank_layout: &RankLayout) -> Self {
        let group = |kind| b.group(kind, &rank_layout.members(kind));
        let [tensor, kv, data] = [GroupKind::Tensor, GroupKind::KvHeads, GroupKind::Data].map(group);
        let [activations, gradients, tied] = [GroupKind::Activations, GroupKind::Gradients, GroupKind::Tied].map(group);
        let (world, optimizer) =
            (group(GroupKind::World), b.group(GroupKind::Optimizer, &rank_layout.optimizer_members(config)));
        let norms = config.parallel.sequence_parallel.then(|| group(GroupKind::Tensor));
        Groups { tensor, kv, data, activations, gradients, tied, world, optimizer, norms }
    }
}
