//! An emulator for tests. It runs the CUDA kernels of `cuda/kernels` on the host, compiled by the host's C++ compiler,
//! and reports races, accesses out of bounds, reads of uninitialized data or of data in flight, and barriers that some
//! threads do not reach, with kernel, block, thread and line.
//!
//! It does not detect races between blocks in global memory or bugs of NVIDIA's compiler, and says nothing about speed.

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

/// Bytes of a kernel's arguments; None if there is no kernel of this name.
pub fn args_size(kernel: &str) -> Option<usize> {
    // SAFETY: the call reads exactly the bytes of the name.
    let size = unsafe { ffi::emu_args_size(kernel.as_ptr().cast(), kernel.len()) };
    (size > 0).then_some(size)
}

/// The order in which blocks and threads are scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Forward,
    Reversed,
    /// Random order with a seed.
    Random(u32),
}

/// Multiprocessors: few, so that persistent blocks loop over several rows.
pub const PROCESSORS: usize = 2;

/// The schedules of every test.
pub const SCHEDULES: [Schedule; 4] = [Schedule::Forward, Schedule::Reversed, Schedule::Random(1), Schedule::Random(2)];

/// Counters of successful launches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bank conflicts: passes of `ldmatrix` beyond one per matrix.
    pub conflicts: u64,
    /// Switches between threads.
    pub switches: u64,
    /// Bytes that asynchronous copies brought from global to shared memory.
    pub copied: u64,
}

/// The first error of a launch. What the kernel wrote before remains.
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

/// A machine that uses host memory and kernels compiled by the host's compiler.
pub struct Emulator {
    schedule: Schedule,
    run: Run,
    stats: Cell<Stats>,
}

impl Emulator {
    /// Uses the kernels linked into this program.
    pub fn new(schedule: Schedule) -> Self {
        Emulator { schedule, run: ffi::emu_run, stats: Cell::default() }
    }

    /// Uses the kernels of a shared library with its own emulator, which stays loaded, and this program's for those
    /// that it lacks.
    ///
    /// # Safety
    /// The library is built from `runtime/` and kernels, like this program.
    pub unsafe fn of_library(path: &Path, schedule: Schedule) -> Result<Self, libloading::Error> {
        // SAFETY: by this function's contract loading the library only registers kernels, and its `emu_run` is that of
        // `runtime/`.
        let run = unsafe {
            let library = Box::leak(Box::new(libloading::Library::new(path)?));
            *library.get::<Run>(b"emu_run")?
        };
        Ok(Emulator { schedule, run, stats: Cell::default() })
    }

    /// The counters of all launches so far.
    pub fn stats(&self) -> Stats {
        self.stats.get()
    }

    /// Runs a kernel to completion.
    ///
    /// # Safety
    /// The contract of [`Machine::start`].
    unsafe fn run(&self, kernel: &str, args: *const c_void, geometry: Geometry) -> Result<(), Fault> {
        let schedule = match self.schedule {
            Schedule::Forward => 0,
            Schedule::Reversed => 1,
            Schedule::Random(seed) => seed.saturating_add(2),
        };
        let launch = Launch { grid: geometry.grid, block: geometry.block, shared: geometry.shared, schedule };
        let mut report = Report::default();
        let mut go = |run: Run| {
            // SAFETY: the caller guarantees the views; every access through them is checked against their length.
            unsafe { run(kernel.as_ptr().cast(), kernel.len(), args, &launch, &mut report) }
        };
        let code = match go(self.run) {
            -1 => go(ffi::emu_run),
            code => code,
        };
        if code != 0 {
            return Err(report.fault());
        }
        let before = self.stats.get();
        self.stats.set(Stats {
            conflicts: before.conflicts + report.conflicts,
            switches: before.switches + report.switches,
            copied: before.copied + report.copied,
        });
        Ok(())
    }
}

impl Machine for Emulator {
    /// The emulator has the instructions of both targets; an op that asks uses the kernels of sm_80.
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
        // SAFETY: both functions have the same contract.
        unsafe { self.run(kernel, args, geometry) }.map_err(|fault| fault.to_string())
    }
}
