//! How far the device has come: it writes the number of each part that it begins into the host's memory, which
//! outlives a fault.

use super::pinned::Pinned;
use super::stream::Stream;
use cudarc::driver::{DriverError, sys};

/// The part that the device began last.
pub struct Progress {
    cell: Pinned,
    /// The cell, as the device sees it.
    at: sys::CUdeviceptr,
}

impl Progress {
    /// Counts from 0.
    pub fn new(mut cell: Pinned) -> Result<Self, DriverError> {
        cell.bytes_mut()[..4].fill(0);
        let mut at = 0;
        // SAFETY: the block is pinned and lives as long as this; its address is all that is asked.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut at, cell.bytes_mut().as_mut_ptr().cast(), 0) }.result()?;
        Ok(Progress { cell, at })
    }

    /// Once the stream comes here, part `number` has begun.
    pub fn begin(&self, stream: &Stream, number: u32) -> Result<(), DriverError> {
        // SAFETY: the cell is four bytes of pinned memory that live as long as the stream's owner.
        unsafe { sys::cuStreamWriteValue32_v2(stream.raw(), self.at, number, 0) }.result()
    }

    /// The part that was begun last.
    pub fn now(&self) -> u32 {
        // SAFETY: four aligned bytes that the device may write at any time: a volatile read of plain numbers.
        unsafe { self.cell.bytes().as_ptr().cast::<u32>().read_volatile() }
    }
}
