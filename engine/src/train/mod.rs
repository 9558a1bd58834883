//! A training step: the schedule's execution, the optimizer, the trainer that puts them together, and the transfer of
//! state between a trainer and its checkpoints.

pub mod clock;
pub mod copies;
pub mod eval;
pub mod generate;
pub mod likelihood;
pub mod lr;
pub mod optim;
mod origin;
pub mod pipeline;
pub mod probe;
pub mod state;
pub mod trainer;
