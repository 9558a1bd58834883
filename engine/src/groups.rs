//! All groups that a rank is in, made before anything else takes of a device's memory.

use crate::backend::Backend;
use crate::config::Config;
use crate::mesh::Kind;
use crate::place::Place;

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
    /// Of the rank at `place`. In one order on all ranks: making a group takes all of them.
    pub fn new(b: &B, config: &Config, place: &Place) -> Self {
        let group = |kind| b.group(kind, &place.members(kind));
        let [tensor, kv, data] = [Kind::Tensor, Kind::KvHeads, Kind::Data].map(group);
        let [activations, gradients, tied] = [Kind::Activations, Kind::Gradients, Kind::Tied].map(group);
        let (world, optimizer) = (group(Kind::World), b.group(Kind::Optimizer, &place.optimizer_members(config)));
        let norms = config.parallel.sequence_parallel.then(|| group(Kind::Tensor));
        Groups { tensor, kv, data, activations, gradients, tied, world, optimizer, norms }
    }
}
