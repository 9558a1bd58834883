//! Copies that only start here: along a stream, between the device's memory and pinned memory of the host.

use super::Device;
use super::pinned::Pinned;
use super::stream::Stream;
use cudarc::driver::{DriverError, result, sys};
use engine::backend::{Detail, Label, Track};

type Done = Result<(), DriverError>;

/// A device's context, for threads beside the one that opened it.
#[derive(Clone, Copy)]
pub struct Current(sys::CUcontext);

// SAFETY: the driver takes a context on any thread. The process keeps the device's primary context until its end.
unsafe impl Send for Current {}

impl Current {
    pub(super) fn of(context: sys::CUcontext) -> Current {
        Current(context)
    }

    /// Makes it the context of the thread which calls.
    pub fn enter(&self) -> Done {
        // SAFETY: the context is the device's primary one; a driver that has given it back says so.
        unsafe { result::ctx::set_current(self.0) }
    }
}

impl Device {
    /// The first `len` bytes of `from`, which is not used again before the stream has passed this, to the address `to`.
    pub fn copy_in(&self, from: &Pinned, len: usize, to: u64) -> Done {
        // SAFETY: the block is pinned and has these bytes; the caller answers for the address and for the time.
        let copy = || unsafe { result::memcpy_htod_async(to, &from.bytes()[..len], self.stream.raw()) };
        let label = || Label::Op(format!("{len} bytes from the host"));
        self.recorded(Detail::Ops, Track::Compute, label, &self.stream, copy)
    }

    /// `len` bytes from the address `from` to the beginning of `to`, along a stream of this device.
    pub fn copy_out(&self, from: u64, to: &mut Pinned, len: usize, stream: &Stream) -> Done {
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(&mut to.bytes_mut()[..len], from, stream.raw()) }
    }

    /// `len` bytes from address to address, which do not overlap.
    pub fn copy_within(&self, from: u64, to: u64, len: usize) -> Done {
        // SAFETY: as above.
        let copy = || unsafe { result::memcpy_dtod_async(to, from, len, self.stream.raw()) };
        let label = || Label::Op(format!("a copy of {len} bytes"));
        self.recorded(Detail::Ops, Track::Compute, label, &self.stream, copy)
    }

    /// Its context, for other threads.
    pub fn context(&self) -> Current {
        Current::of(self.context.raw)
    }
}
