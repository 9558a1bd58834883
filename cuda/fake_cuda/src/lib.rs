//! A fake CUDA driver, cuBLASLt, NCCL and NVRTC that run on the host, so that the unmodified CUDA backend can be tested
//! without a device: streams are threads, kernels run in the emulator, and ranks communicate by sockets.
//!
//! Where the real libraries leave a choice, this makes the one that exposes bugs: memory is never zeroed, a copy reads
//! pinned memory as late as possible, a send completes only when it has been received. `settings` lists what tests can
//! set.

// The safety contracts are those of NVIDIA's manuals.
#![allow(clippy::missing_safety_doc)]

pub mod blas;
pub mod code;
pub mod driver;
mod fault;
mod handles;
mod memory;
pub mod nccl;
pub mod nvrtc;
mod queues;
mod settings;
mod stream;
