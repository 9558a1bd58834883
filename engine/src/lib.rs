//! The training core: everything but CUDA between a configuration and a trained checkpoint, in the order in which a
//! token passes through it. The modules are listed by floor, from bottom to top; no module imports from a higher floor
//! (`tests/floors.rs`). `ARCHITECTURE.md` follows a token through them.

// Floor 0: numbers only. No tensors, no MPI, nothing generic.
pub mod batch;
pub mod config;
pub mod error;
pub mod flight;
pub mod layout;
pub mod memory;
pub mod model;
pub mod retry;
pub mod schedule;
pub mod scope;
pub mod stderr;
pub mod time;
// Floor 1: the interface between the engine and the backends, and MPI.
pub mod backend;
pub mod mpi;
// Floor 2: backends.
pub mod cpu;
pub mod dry;
// Floor 3: the maths.
pub mod layers;
// Floor 4: one pipeline stage.
pub mod stage;
// Floor 5: checkpoints.
pub mod checkpoint;
// Floor 6: a training step, its optimizer, and evaluation.
pub mod train;
// Floor 7: the comparison of every layout with one rank.
pub mod parity;
