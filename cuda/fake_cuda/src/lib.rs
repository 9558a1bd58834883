//! A CUDA driver, cuBLASLt, NCCL and NVRTC that run on the host, so that the CUDA backend can be tested as it is, on
//! machines without a device: its streams are threads, its kernels the emulator's, its links sockets.
//!
//! Where the real ones leave a choice, this takes the one that hurts: memory is never clean, a copy from pinned memory
//! reads it late, a send ends only when it was received. `settings` has what tests can ask for.

// The callers' duties are those of NVIDIA's manuals.
#![allow(clippy::missing_safety_doc)]

pub mod blas;
pub mod code;
pub mod driver;
mod fault;
mod handles;
mod memory;
pub mod nccl;
pub mod nvrtc;
mod settings;
mod stream;
