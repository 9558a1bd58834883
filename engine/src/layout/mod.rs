//! The distribution of work over ranks: the mesh of ranks, ranks on nodes, layers on pipeline stages, tensors in
//! buckets. All of it is computed by pure functions of integers.

pub mod buckets;
pub mod mesh;
pub mod placement;
pub mod rank_layout;
pub mod rounds;
pub mod split;
