//! What a run says about itself: the metrics file, TensorBoard events, the share of a device's peak.

pub mod metrics;
pub mod peak;
pub mod tensorboard;
pub mod trace;
