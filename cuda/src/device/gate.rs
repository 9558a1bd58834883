//! A gate in a stream: the device waits there until the host opens it.

use super::pinned::Pinned;
use super::stream::Stream;
use cudarc::driver::{DriverError, sys};

/// The value that opens the gate.
const OPEN: u32 = 1;

/// A word of pinned memory on which a stream waits. Its owner synchronizes the stream between opening and dropping it;
/// where an error keeps it from that, dropping the gate opens it, so that no stream waits for ever.
pub struct Gate {
    memory: Pinned,
    /// The memory's device address.
    at: sys::CUdeviceptr,
}

impl Gate {
    pub fn new(mut memory: Pinned) -> Result<Self, DriverError> {
        memory.bytes_mut()[..4].fill(0);
        let mut at = 0;
        // SAFETY: the block is pinned and lives as long as this; the call only returns its address.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut at, memory.bytes_mut().as_mut_ptr().cast(), 0) }.result()?;
        Ok(Gate { memory, at })
    }

    /// Makes later work on the stream wait until the gate is open.
    pub fn hold(&self, stream: &Stream) -> Result<(), DriverError> {
        let at_least = sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32;
        // SAFETY: the word is four aligned bytes of pinned memory that live until the stream has passed.
        unsafe { sys::cuStreamWaitValue32_v2(stream.raw(), self.at, OPEN, at_least) }.result()
    }

    pub fn open(&mut self) {
        let word = self.memory.bytes_mut().as_mut_ptr().cast::<u32>();
        // SAFETY: four aligned bytes of this block, which the device only reads.
        unsafe { word.write_volatile(OPEN) }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}
