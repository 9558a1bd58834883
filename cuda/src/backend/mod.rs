//! The engine's contract on a device.

mod scratch;

pub use scratch::CudaScratch;
