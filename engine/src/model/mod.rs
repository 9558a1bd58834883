//! The model in numbers: its tensors, how tensor parallelism shards them, their initial values, and its FLOPs.

pub mod flops;
pub mod init;
pub mod param_specs;
pub mod rect;
pub mod stored;
