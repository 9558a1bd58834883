//! What a run says about itself: the metrics file, TensorBoard events, the time of every rank, the share of a device's peak;
//! and, afterwards, what all that comes to: `run` reads it, `efficiency` makes figures of it, `document` says them,
//! `markdown` and `page` write that down.

pub mod document;
pub mod efficiency;
pub mod found;
pub mod lines;
pub mod machine;
pub mod markdown;
pub mod metrics;
pub mod page;
pub mod peak;
pub mod run;
pub mod samples;
pub mod settings;
pub mod stragglers;
pub mod tensorboard;
pub mod timeline;
pub mod trace;
