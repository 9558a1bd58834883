//! The engine: everything but CUDA. Floors from bottom to top; imports only point down
//! (`tests/floors.rs`). See `ARCHITECTURE.md` for the way of a token through them.

// Floor 0: numbers only.
pub mod batch;
pub mod buckets;
pub mod config;
pub mod error;
pub mod flops;
pub mod init;
pub mod inventory;
pub mod ledger;
pub mod lr;
pub mod mesh;
pub mod phase;
pub mod place;
pub mod rect;
pub mod schedule;
pub mod seating;
pub mod slab;
pub mod split;
pub mod traffic;
// Floor 1: the contract.
pub mod backend;
pub mod mpi;
pub mod nodes;
// Floor 2: backends.
pub mod cpu;
pub mod dry;
// Floor 3: the maths.
pub mod layers;
// Floor 4: one pipeline stage.
pub mod clock;
pub mod grads;
pub mod groups;
pub mod params;
pub mod stage;
// Floor 5: a step.
pub mod data;
pub mod optim;
pub mod pipeline;
// Floor 6: the run.
pub mod checkpoint;
pub mod parity;
pub mod plan;
pub mod rehearsal;
pub mod report;
pub mod score;
pub mod state;
pub mod trainer;
