//! The engine: everything but CUDA. Floors from bottom to top; imports only point down
//! (`tests/floors.rs`). See `ARCHITECTURE.md` for the way of a token through them.

// Floor 0: numbers only.
pub mod batch;
pub mod buckets;
pub mod config;
pub mod error;
pub mod init;
pub mod inventory;
pub mod mesh;
pub mod rect;
// Floor 1: the contract.
pub mod backend;
pub mod mpi;
// Floor 2: backends.
pub mod cpu;
// Floor 3: the maths.
pub mod layers;
// Floor 6: the run.
pub mod checkpoint;
