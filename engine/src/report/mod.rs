//! What a run says about itself: the metrics file, TensorBoard events, the time of every rank, the share of a device's peak.

pub mod lines;
pub mod machine;
pub mod metrics;
pub mod peak;
pub mod samples;
pub mod stragglers;
pub mod tensorboard;
pub mod timeline;
pub mod trace;
