//! The training core: everything between a configuration and a trained checkpoint but CUDA, in the order in which
//! a token meets it. Floors from bottom to top; imports only point down (`tests/floors.rs`). `ARCHITECTURE.md`
//! follows a token through them.

// Floor 0: numbers only. No tensors, no MPI, nothing generic.
pub mod batch;
pub mod config;
pub mod error;
pub mod layout;
pub mod memory;
pub mod model;
pub mod schedule;
<<<<<<< /tmp/w/overlay/engine/src/lib.rs
pub mod time;
// Floor 1: the contract between the engine and what computes and communicates.
||||||| /tmp/w/t0/engine/src/lib.rs
pub mod seating;
pub mod slab;
pub mod split;
pub mod traffic;
// Floor 1: the contract.
=======
pub mod seating;
pub mod slab;
pub mod split;
// Floor 1: the contract.
>>>>>>> /tmp/w/scratch/engine/src/lib.rs
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
// Floor 6: a training step, and what surrounds it.
pub mod train;
// Floor 7: every layout against one rank.
pub mod parity;
<<<<<<< /tmp/w/overlay/engine/src/lib.rs
||||||| /tmp/w/t0/engine/src/lib.rs
pub mod plan;
pub mod rehearsal;
pub mod report;
pub mod score;
pub mod state;
pub mod trainer;
=======
pub mod plan;
pub mod rehearsal;
pub mod report;
pub mod score;
pub mod state;
pub mod traffic;
pub mod trainer;
>>>>>>> /tmp/w/scratch/engine/src/lib.rs
