//! The CUDA side of the engine: kernels, what compiles and launches them, and the devices that there are.
//!
//! An op (`ops`) fills in a kernel's arguments (`args`) and launches it on a `Machine` with the blocks and threads
//! that `geometry` says: on a `Device`, whose kernels `compile` provides, or on the emulator of the tests.
//! Driver and compiler are loaded when they are first asked for, so the program starts on machines without them.

pub mod arch;
pub mod args;
pub mod backend;
pub mod blas;
pub mod compile;
pub mod device;
mod files;
pub mod geometry;
pub mod kernels;
pub mod limits;
pub mod links;
pub mod machine;
pub mod nccl;
pub mod ops;
pub mod search;
pub mod tensor;

pub use device::{Device, devices};
