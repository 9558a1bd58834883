//! A CUDA driver, cuBLASLt, NCCL and NVRTC that run on the host, so that the CUDA backend can be tested as it is, on
//! machines without a device: its streams are threads, its kernels the emulator's, its links sockets.

pub mod blas;
pub mod driver;
pub mod nccl;
pub mod nvrtc;
