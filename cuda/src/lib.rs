//! The CUDA backend: kernels, their compilation and launch, devices, cuBLASLt and NCCL.
//!
//! An op (`ops`) fills in a kernel's arguments and launches it on a `Machine`: a `Device`, whose kernels `compile`
//! provides, or the tests' emulator. NVIDIA's libraries are loaded when they are first used, so the program starts
//! without them.

pub mod arch;
pub mod backend;
pub mod blas;
pub mod compile;
pub mod device;
pub mod kernels;
pub mod limits;
pub mod links;
pub mod machine;
pub mod nccl;
pub mod ops;
mod product;
pub mod search;
pub mod tensor;

pub use device::{Device, devices};
