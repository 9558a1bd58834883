//! The training core: everything between a configuration and a trained checkpoint but CUDA, in the order in which
//! a token meets it. Floors from bottom to top; imports only point down (`tests/floors.rs`). `ARCHITECTURE.md`
//! follows a token through them.

// Floor 0: numbers only. No tensors, no MPI, nothing generic.
pub mod batch;
pub mod config;
pub mod error;
<<<<<<< /tmp/w/overlay/engine/src/lib.rs
pub mod layout;
pub mod memory;
pub mod model;
||||||| /tmp/w/t0/engine/src/lib.rs
pub mod flops;
pub mod init;
pub mod inventory;
pub mod ledger;
pub mod lr;
pub mod mesh;
pub mod phase;
pub mod place;
pub mod rect;
=======
pub mod flops;
pub mod init;
pub mod inventory;
pub mod ledger;
pub mod lr;
pub mod memory;
pub mod mesh;
pub mod phase;
pub mod place;
pub mod rect;
>>>>>>> /tmp/w/scratch/engine/src/lib.rs
pub mod schedule;
pub mod time;
// Floor 1: the contract between the engine and what computes and communicates.
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
