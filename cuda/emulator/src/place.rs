//! Where a test's slices are while kernels use them: the emulator works on them where they lie, a device on copies.

use crate::Emulator;
use bytemuck::Pod;
use cuda::machine::Machine;
use cuda::tensor::View;
use std::hash::{DefaultHasher, Hasher};
use std::marker::PhantomData;

/// Whose arithmetic a place's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Emulator,
    Device,
}

/// A machine that takes slices in and gives them back.
pub trait Place {
    fn machine(&self) -> &dyn Machine;
    fn kind(&self) -> Kind;
    /// Whose results these are, for messages.
    fn name(&self) -> String;
    /// The address at which kernels find these bytes, as far off a multiple of 16 as they are.
    fn view(&self, bytes: &[u8]) -> u64;
    /// The same of bytes that kernels may write.
    fn view_mut(&self, bytes: &mut [u8]) -> u64;
    /// What was lent at this address is not used any more.
    fn end(&self, at: u64);
    /// The same, and `bytes` become what kernels left there.
    fn end_mut(&self, at: u64, bytes: &mut [u8]);
}

impl Place for Emulator {
    fn machine(&self) -> &dyn Machine {
        self
    }

    fn kind(&self) -> Kind {
        Kind::Emulator
    }

    fn name(&self) -> String {
        format!("the emulator, {:?}", self.schedule)
    }

    fn view(&self, bytes: &[u8]) -> u64 {
        bytes.as_ptr() as u64
    }

    fn view_mut(&self, bytes: &mut [u8]) -> u64 {
        bytes.as_mut_ptr() as u64
    }

    fn end(&self, _: u64) {}

    fn end_mut(&self, _: u64, _: &mut [u8]) {}
}

/// Slices that kernels may use until this is dropped; those lent to be written to are then as the kernels left them.
pub struct TensorView<'a> {
    place: &'a dyn Place,
    read: Vec<u64>,
    written: Vec<(u64, *mut [u8])>,
    given: DefaultHasher,
    slices: PhantomData<&'a mut [u8]>,
}

impl<'a> TensorView<'a> {
    pub fn to(place: &'a dyn Place) -> Self {
        let given = DefaultHasher::new();
        TensorView { place, read: Vec::new(), written: Vec::new(), given, slices: PhantomData }
    }

    pub fn machine(&self) -> &'a dyn Machine {
        self.place.machine()
    }

    /// A view to read.
    pub fn read<T: Pod>(&mut self, x: &'a [T]) -> View {
        if x.is_empty() {
            return View::NONE;
        }
        let bytes = bytemuck::cast_slice(x);
        self.given.write(bytes);
        let at = self.place.view(bytes);
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
        self.given.write(bytes);
        let at = self.place.view_mut(bytes);
        self.written.push((at, bytes));
        // SAFETY: the slice, or the place's copy of it, lives until `self` is dropped, and is borrowed exclusively.
        unsafe { View::new(at, n) }
    }

    /// Ends the loan: a hash of all that was lent, as it was then, and what the kernels left in each slice that they
    /// might write.
    pub fn end(mut self) -> (u64, Vec<Vec<u8>>) {
        self.give_back();
        // SAFETY: as in `give_back`, which has just ended all other use.
        let left = self.written.drain(..).map(|(_, bytes)| unsafe { &*bytes }.to_vec()).collect();
        (self.given.finish(), left)
    }

    fn give_back(&mut self) {
        self.read.drain(..).for_each(|at| self.place.end(at));
        for &(at, bytes) in &self.written {
            // SAFETY: it was made of a slice that is borrowed exclusively for as long as `self` lives.
            self.place.end_mut(at, unsafe { &mut *bytes });
        }
    }
}

impl Drop for TensorView<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}
