//! Device memory, and copies along a stream.

use super::pinned::Pinned;
use super::stream::Stream;
use super::{Device, Result};
use crate::tensor::View;
use cudarc::driver::{DriverError, result};
use engine::backend::{Detail, Label, Track};
use std::ops::Deref;

/// A block of device memory, freed when dropped. The driver aligns it to at least 256 bytes.
pub struct Memory<D: Deref<Target = Device>> {
    device: D,
    at: u64,
    len: usize,
}

impl Device {
    /// Allocates `len` > 0 uninitialized bytes.
    pub fn alloc(&self, len: usize) -> Result<Memory<&Device>> {
        Memory::of(self, len)
    }

    /// Starts a copy of the first `len` bytes of `from` to the device address `to`. `from` must not be reused before
    /// the stream has completed it.
    pub fn copy_in(&self, from: &Pinned, len: usize, to: u64) -> std::result::Result<(), DriverError> {
        // SAFETY: the block is pinned and has these bytes; the caller guarantees the address and the lifetime.
        let copy = || unsafe { result::memcpy_htod_async(to, &from.bytes()[..len], self.stream.raw()) };
        let label = || Label::Op(format!("{len} bytes from the host"));
        self.recorded(Detail::Ops, Track::Compute, label, &self.stream, copy)
    }

    /// Starts a copy of `len` bytes from the device address `from` to `to`, on a stream of this device.
    pub fn copy_out(
        &self,
        from: u64,
        to: &mut Pinned,
        len: usize,
        stream: &Stream,
    ) -> std::result::Result<(), DriverError> {
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(&mut to.bytes_mut()[..len], from, stream.raw()) }
    }

    /// Starts a copy of `len` bytes between device addresses, which do not overlap.
    pub fn copy_within(&self, from: u64, to: u64, len: usize) -> std::result::Result<(), DriverError> {
        // SAFETY: as above.
        let copy = || unsafe { result::memcpy_dtod_async(to, from, len, self.stream.raw()) };
        let label = || Label::Op(format!("a copy of {len} bytes"));
        self.recorded(Detail::Ops, Track::Compute, label, &self.stream, copy)
    }

    /// Fills device memory with repetitions of `pattern`. Blocks.
    pub(crate) fn repeat(&self, pattern: &[u8], bytes: View) -> Result<()> {
        let (at, len) = (bytes.at(), bytes.len());
        let mut done = pattern.len().min(len);
        // SAFETY: the view guarantees the memory, and the pattern is borrowed until the copy has completed.
        self.checked(unsafe { result::memcpy_htod_async(at, &pattern[..done], self.stream.raw()) })?;
        while done < len {
            let next = done.min(len - done);
            // SAFETY: the bytes before `done` are copied to the bytes after it, within the view.
            self.checked(unsafe { result::memcpy_dtod_async(at + done as u64, at, next, self.stream.raw()) })?;
            done += next;
        }
        self.sync()
    }
}

impl<D: Deref<Target = Device>> Memory<D> {
    /// [`Device::alloc`], for any kind of reference to the device.
    pub fn of(device: D, len: usize) -> Result<Self> {
        assert!(len > 0, "a block of no bytes");
        // SAFETY: the device's context is current on this thread; `drop` frees the result.
        let at = device.checked(unsafe { result::malloc_sync(len) })?;
        Ok(Memory { device, at, len })
    }

    /// The address of the first byte.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to byte `offset`. Blocks.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range(offset, bytes.len());
        // SAFETY: the range lies in the block, and the bytes are borrowed until the copy has completed.
        let copied = unsafe { result::memcpy_htod_async(to, bytes, self.device.stream.raw()) };
        self.device.checked(copied)?;
        self.device.sync()
    }

    /// Fills `bytes` from byte `offset` on. Blocks.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(offset, bytes.len());
        // SAFETY: the range lies in the block, and the bytes are borrowed until the copy has completed.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, from, self.device.stream.raw()) };
        self.device.checked(copied)?;
        self.device.sync()
    }

    /// Starts a copy from a block of the same length on the same device.
    pub fn copy(&mut self, from: &Memory<D>) -> Result<()> {
        let streams = [self.device.stream.raw(), from.device.stream.raw()];
        assert_eq!((self.len, streams[0]), (from.len, streams[1]), "a copy from block to block");
        // SAFETY: both blocks have these bytes; they are freed only after the stream has completed the copy.
        let copied = unsafe { result::memcpy_dtod_async(self.at, from.at, self.len, self.device.stream.raw()) };
        self.device.checked(copied)
    }

    /// Starts setting all bytes to `byte`.
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        // SAFETY: these are exactly the block's bytes.
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
        // SAFETY: it was allocated once, and all work that uses it has completed.
        _ = unsafe { result::free_sync(self.at) };
    }
}
