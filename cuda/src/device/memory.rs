//! Memory of a device. Copies go along the stream, after what was started before, and have ended when they return.

use super::{Device, Result};
use cudarc::driver::result;
use std::ops::Deref;

/// A block of bytes on a device, freed when dropped. The driver aligns it to 256 bytes at least.
pub struct Memory<D: Deref<Target = Device>> {
    device: D,
    at: u64,
    len: usize,
}

impl Device {
    /// `len` bytes, more than none, that hold anything.
    pub fn alloc(&self, len: usize) -> Result<Memory<&Device>> {
        Memory::of(self, len)
    }
}

impl<D: Deref<Target = Device>> Memory<D> {
    /// As [`Device::alloc`], of a device that several own.
    pub fn of(device: D, len: usize) -> Result<Self> {
        assert!(len > 0, "a block of no bytes");
        // SAFETY: the device's context is current on this thread; what comes back is freed by `drop`.
        let at = device.checked(unsafe { result::malloc_sync(len) })?;
        Ok(Memory { device, at, len })
    }

    /// The address of the first byte.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a block has bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes these bytes from byte `offset` on.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range(offset, bytes.len());
        // SAFETY: the range lies in the block, and the bytes are borrowed until the copy has ended.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, self.device.stream.raw()) };
        self.device.checked(copied)?;
        self.device.sync()
    }

    /// Fills `bytes` with those from byte `offset` on.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(offset, bytes.len());
        // SAFETY: the range lies in the block, and the bytes are borrowed until the copy has ended.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.device.stream.raw()) };
        self.device.checked(copied)?;
        self.device.sync()
    }

    /// Becomes what `from`, a block of the same length on the same device, holds. Returns before that is done.
    pub fn copy(&mut self, from: &Memory<D>) -> Result<()> {
        assert_eq!(
            (self.len, self.device.stream.raw()),
            (from.len, from.device.stream.raw()),
            "a copy from block to block"
        );
        // SAFETY: both blocks have these bytes; they are freed only after the stream has passed the copy.
        let copied = unsafe { result::memcpy_dtod_async(self.at, from.at, self.len, self.device.stream.raw()) };
        self.device.checked(copied)
    }

    /// Makes all bytes the same.
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        // SAFETY: these are the block's bytes, all of them.
        let filled = unsafe { result::memset_d8_async(self.at, byte, self.len, self.device.stream.raw()) };
        self.device.checked(filled)
    }

    fn range(&self, offset: usize, len: usize) -> u64 {
        assert!(offset + len <= self.len, "bytes {offset} .. {} of a block of {}", offset + len, self.len);
        self.at + offset as u64
    }
}

impl<D: Deref<Target = Device>> Drop for Memory<D> {
    fn drop(&mut self) {
        _ = self.device.sync();
        // SAFETY: it was allocated once, and nothing that was started uses it any more.
        _ = unsafe { result::free_sync(self.at) };
    }
}
