//! How far a stream has come: the device writes the number of each part that it begins into the host's memory, which
//! outlives a fault and which any thread may read.

use super::pinned::Pinned;
use super::stream::Stream;
use cudarc::driver::{DriverError, sys};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The part that was begun last, by the host's orders and on the device.
#[derive(Clone)]
pub struct Progress(Arc<Cell>);

struct Cell {
    memory: Pinned,
    /// The memory, as the device sees it.
    at: sys::CUdeviceptr,
    begun: AtomicU32,
}

impl Progress {
    /// Counts from 0.
    pub fn new(mut memory: Pinned) -> Result<Self, DriverError> {
        memory.bytes_mut()[..4].fill(0);
        let mut at = 0;
        // SAFETY: the block is pinned and lives as long as this; its address is all that is asked.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut at, memory.bytes_mut().as_mut_ptr().cast(), 0) }.result()?;
        Ok(Progress(Arc::new(Cell { memory, at, begun: AtomicU32::new(0) })))
    }

    /// Once the stream comes here, part `number` has begun.
    pub fn begin(&self, stream: &Stream, number: u32) -> Result<(), DriverError> {
        self.0.begun.store(number, Relaxed);
        // SAFETY: the cell is four bytes of pinned memory that live as long as the stream's owner.
        unsafe { sys::cuStreamWriteValue32_v2(stream.raw(), self.0.at, number, 0) }.result()
    }

    /// The part that was last given to the stream.
    pub fn begun(&self) -> u32 {
        self.0.begun.load(Relaxed)
    }

    /// The part that the device began last.
    pub fn now(&self) -> u32 {
        // SAFETY: four aligned bytes that the device may write at any time: a volatile read of plain numbers.
        unsafe { self.0.memory.bytes().as_ptr().cast::<u32>().read_volatile() }
    }

    /// Whether the device has not come to the last part yet.
    pub fn is_behind(&self) -> bool {
        self.now() != self.begun()
    }
}
