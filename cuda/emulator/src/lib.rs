//! Runs the CUDA kernels of `cuda/kernels` on the host, compiled by its C++ compiler, and reports races, accesses
//! out of bounds, reads of what was never written or is still in flight, and barriers that not all reach: kernel,
//! block, thread, line. Only for tests.
//!
//! It does not see races between blocks in global memory, faults of the device's compiler, nor speed.

pub mod device;
mod ffi;
pub mod place;
pub mod planted;
pub mod probes;

use cuda::machine::{Geometry, Machine, Target};
use cuda::tensor::{TensorMap, Tiles};
use ffi::{Launch, Report, Run};
use std::cell::Cell;
use std::ffi::c_void;
use std::path::Path;

/// Bytes of the arguments that the kernel of this name takes; None where this program has no such kernel.
pub fn args_size(kernel: &str) -> Option<usize> {
    // SAFETY: the name is read for as many bytes as it has.
    let size = unsafe { ffi::emu_args_size(kernel.as_ptr().cast(), kernel.len()) };
    (size > 0).then_some(size)
}

/// In which order blocks and threads take turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Forward,
    Reversed,
    /// With a seed.
    Random(u32),
}

/// Few, so that blocks have several rows to walk over.
pub const PROCESSORS: usize = 2;

/// The orders that every test goes through.
pub const SCHEDULES: [Schedule; 4] = [Schedule::Forward, Schedule::Reversed, Schedule::Random(1), Schedule::Random(2)];

/// What launches that went well have counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

/// A machine whose memory is the host's, with kernels that were compiled by the host's compiler.
pub struct Emulator {
    schedule: Schedule,
    run: Run,
    stats: Cell<Stats>,
}

impl Emulator {
    /// With the kernels that are linked to this program.
    pub fn new(schedule: Schedule) -> Self {
        Emulator { schedule, run: ffi::emu_run, stats: Cell::default() }
    }

    /// With the kernels of a shared library that holds an emulator of its own; it stays loaded. Kernels that it
    /// does not hold are this program's.
    ///
    /// # Safety
    /// The library is built from `runtime/` and from kernels, as this program's own.
    pub unsafe fn of_library(path: &Path, schedule: Schedule) -> Result<Self, libloading::Error> {
        // SAFETY: by this function's contract the library starts nothing but the kernels' registration, and its
        // `emu_run` is that of `runtime/`.
        let run = unsafe {
            let library = Box::leak(Box::new(libloading::Library::new(path)?));
            *library.get::<Run>(b"emu_run")?
        };
        Ok(Emulator { schedule, run, stats: Cell::default() })
    }

    /// What all launches so far have counted.
    pub fn stats(&self) -> Stats {
        self.stats.get()
    }

    /// Runs a kernel to its end.
    ///
    /// # Safety
    /// As [`Machine::start`].
    unsafe fn run(&self, kernel: &str, args: *const c_void, geometry: Geometry) -> Result<(), Fault> {
        let schedule = match self.schedule {
            Schedule::Forward => 0,
            Schedule::Reversed => 1,
            Schedule::Random(seed) => seed.saturating_add(2),
        };
        let launch = Launch { grid: geometry.grid, block: geometry.block, shared: geometry.shared, schedule };
        let mut report = Report::default();
        let mut go = |run: Run| {
            // SAFETY: the caller answers for the views; every access through them is held to their length.
            unsafe { run(kernel.as_ptr().cast(), kernel.len(), args, &launch, &mut report) }
        };
        let code = match go(self.run) {
            -1 => go(ffi::emu_run),
            code => code,
        };
        if code != 0 {
            return Err(report.fault());
        }
        let Stats { conflicts, switches } = self.stats.get();
        self.stats.set(Stats { conflicts: conflicts + report.conflicts, switches: switches + report.switches });
        Ok(())
    }
}

impl Machine for Emulator {
    /// It has the instructions of both; the ops of sm_80 are then what an op chooses.
    fn target(&self) -> Target {
        Target::Sm80
    }

    fn tensor_map(&self, tiles: Tiles) -> Result<TensorMap, String> {
        tiles.check()?;
        Ok(ffi::Map::of(tiles).into())
    }

    fn processors(&self) -> usize {
        PROCESSORS
    }

    unsafe fn start(&self, kernel: &'static str, args: *const c_void, geometry: Geometry) -> Result<(), String> {
        // SAFETY: this function's contract is that of `run`.
        unsafe { self.run(kernel, args, geometry) }.map_err(|fault| fault.to_string())
    }
}
