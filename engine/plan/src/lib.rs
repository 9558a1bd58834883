//! Predicts a run before it is queued: its memory, its step time and the breakdown of that, on a cluster that need not
//! be available.
//!
//! The simulation does not depend on the structure of the layers. The trainer runs a step on the dry backend, a
//! [`CostModel`] gives the ops and calls of its log their seconds, and `replay` runs the logs against each other.

pub mod advice;
pub mod analytic;
pub mod cost;
pub mod dry_run;
pub mod estimate;
pub mod forecast;
pub mod profile;
pub mod rates;
pub mod replay;
pub mod run;
pub mod search;
pub mod step;
pub mod traffic;

pub use advice::{Change, best_change, bottleneck};
pub use analytic::{AnalyticCosts, NodeMap};
pub use forecast::{Forecast, Speed};
pub use profile::{Profile, ProfiledCosts};
pub use rates::DeviceRates;
pub use replay::{CommMode, CostModel, RankTimeline, replay};
pub use step::Step;

#[cfg(test)]
mod tests;
