//! What a run would take before it is queued: its step in simulated time, on a cluster that need not be at hand.
//!
//! Nothing here knows what a layer is. The trainer rehearses a step on the dry backend; the ops and calls that it makes,
//! in its order, get their seconds from a cluster's figures (`paper`), and `replay` runs the ranks against each other.

pub mod change;
pub mod cost;
pub mod dry_run;
pub mod estimate;
pub mod figures;
pub mod forecast;
pub mod limit;
pub mod paper;
pub mod replay;
pub mod run;
pub mod search;
pub mod step;
pub mod traffic;

pub use change::{Change, best_change};
pub use figures::{Figures, Measured};
pub use forecast::{Forecast, Speed};
pub use limit::bottleneck;
pub use paper::{Paper, Seats};
pub use replay::{Costs, Manner, Ran, replay};
pub use step::{Share, Step};

#[cfg(test)]
mod tests;
