//! Where a test's slices are while kernels use them: the emulator works on them where they lie, a device on copies.

use crate::Emulator;
use bytemuck::Pod;
use cuda::args::View;
use cuda::machine::Machine;
use std::marker::PhantomData;

/// A machine that takes slices in and gives them back.
pub trait Place {
    fn machine(&self) -> &dyn Machine;
    /// Whose results these are, for messages.
    fn name(&self) -> String;
    /// The address at which kernels find these bytes, as far off a multiple of 16 as they are.
    fn lend(&self, bytes: &[u8]) -> u64;
    /// The same of bytes that kernels may write.
    fn lend_mut(&self, bytes: &mut [u8]) -> u64;
    /// What was lent at this address is not used any more.
    fn end(&self, at: u64);
    /// The same, and `bytes` become what kernels left there.
    fn end_mut(&self, at: u64, bytes: &mut [u8]);
}

impl Place for Emulator {
    fn machine(&self) -> &dyn Machine {
        self
    }

    fn name(&self) -> String {
        format!("the emulator, {:?}", self.schedule)
    }

    fn lend(&self, bytes: &[u8]) -> u64 {
        bytes.as_ptr() as u64
    }

    fn lend_mut(&self, bytes: &mut [u8]) -> u64 {
        bytes.as_mut_ptr() as u64
    }

    fn end(&self, _: u64) {}

    fn end_mut(&self, _: u64, _: &mut [u8]) {}
}

/// Slices that kernels may use until this is dropped; those lent to be written to are then as the kernels left them.
pub struct Lent<'a> {
    place: &'a dyn Place,
    read: Vec<u64>,
    written: Vec<(u64, *mut [u8])>,
    slices: PhantomData<&'a mut [u8]>,
}

impl<'a> Lent<'a> {
    pub fn to(place: &'a dyn Place) -> Self {
        Lent { place, read: Vec::new(), written: Vec::new(), slices: PhantomData }
    }

    pub fn machine(&self) -> &'a dyn Machine {
        self.place.machine()
    }

    /// A view to read.
    pub fn read<T: Pod>(&mut self, x: &'a [T]) -> View {
        if x.is_empty() {
            return View::NONE;
        }
        let at = self.place.lend(bytemuck::cast_slice(x));
        self.read.push(at);
        // SAFETY: the slice, or the place's copy of it, lives until `self` is dropped, and nobody writes it.
        unsafe { View::new(at, x.len()) }
    }

    /// A view to write to.
    pub fn write<T: Pod>(&mut self, x: &'a mut [T]) -> View {
        if x.is_empty() {
            return View::NONE;
        }
        let (n, bytes) = (x.len(), bytemuck::cast_slice_mut(x));
        let at = self.place.lend_mut(bytes);
        self.written.push((at, bytes));
        // SAFETY: the slice, or the place's copy of it, lives until `self` is dropped, and is borrowed exclusively.
        unsafe { View::new(at, n) }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.read.iter().for_each(|&at| self.place.end(at));
        for &(at, bytes) in &self.written {
            // SAFETY: it was made of a slice that is borrowed exclusively for as long as `self` lives.
            self.place.end_mut(at, unsafe { &mut *bytes });
        }
    }
}
