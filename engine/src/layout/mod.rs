//! Which rank does what: the mesh of ranks, ranks on nodes, layers on pipeline stages, tensors in buckets. Pure
//! functions of integers.

pub mod buckets;
pub mod mesh;
pub mod placement;
pub mod rank_layout;
pub mod split;
