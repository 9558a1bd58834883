//! Runs the CUDA kernels of `cuda/kernels` on the host, compiled by its C++ compiler, and reports races, accesses
//! out of bounds, reads of what was never written or is still in flight, and barriers that not all reach: kernel,
//! block, thread, line. Only for tests.
//!
//! It does not see races between blocks in global memory, faults of the device's compiler, nor speed.

mod ffi;
pub mod ops;
pub mod planted;

use cuda::geometry::Geometry;
use ffi::{Kernel, Launch, Report};

/// In which order blocks and threads take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Forward,
    Reversed,
    /// With a seed.
    Random(u32),
}

/// The orders that every test goes through.
pub const SCHEDULES: [Schedule; 4] = [Schedule::Forward, Schedule::Reversed, Schedule::Random(1), Schedule::Random(2)];

/// What a launch that went well has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Passes that `ldmatrix` needed beyond one a matrix.
    pub conflicts: u64,
    /// Turns that threads took.
    pub switches: u64,
}

/// The first thing that went wrong in a launch; what it wrote until then is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}, block {block:?}, thread {thread}, {file}:{line}: {text}")]
pub struct Fault {
    pub kernel: String,
    pub block: [u32; 3],
    pub thread: u32,
    pub file: String,
    pub line: u32,
    pub text: String,
}

/// # Safety
/// The views in `args` must be of memory that lives, and of which nothing else uses what the kernel writes.
unsafe fn run<A>(kernel: Kernel<A>, args: &A, geometry: Geometry, schedule: Schedule) -> Result<Stats, Fault> {
    let schedule = match schedule {
        Schedule::Forward => 0,
        Schedule::Reversed => 1,
        Schedule::Random(seed) => seed.saturating_add(2),
    };
    let launch = Launch { grid: geometry.grid, block: geometry.block, shared: geometry.shared, schedule };
    let mut report = Report::default();
    // SAFETY: the caller answers for the views; every access through them is held to their length.
    match unsafe { kernel(args, &launch, &mut report) } {
        0 => Ok(Stats { conflicts: report.conflicts, switches: report.switches }),
        _ => Err(report.fault()),
    }
}
