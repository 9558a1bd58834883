//! The machines that tests run kernels on, and the slices that tests pass to the kernels. The emulator works on the
//! slices in place, a device on copies.

use crate::Emulator;
use bytemuck::Pod;
use cuda::machine::Machine;
use cuda::tensor::View;
use std::hash::{DefaultHasher, Hasher};
use std::marker::PhantomData;

/// The kind of machine, which decides the rounding of its arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Emulator,
    Device,
    /// A device's instructions, interpreted on the host.
    Interpreter,
}

/// A machine that accepts slices of the host.
pub trait Place {
    fn machine(&self) -> &dyn Machine;
    fn kind(&self) -> Kind;
    /// A name for messages.
    fn name(&self) -> String;
    /// Makes bytes available to kernels and returns their address, which has the same remainder modulo 16.
    fn view(&self, bytes: &[u8]) -> u64;
    /// The same for bytes that kernels may write.
    fn view_mut(&self, bytes: &mut [u8]) -> u64;
    /// Ends the use of the bytes at this address.
    fn end(&self, at: u64);
    /// The same for written bytes, which are copied back.
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

/// Slices in use by kernels until this is dropped. Dropping it copies the results back.
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

    /// A view for reading.
    pub fn read<T: Pod>(&mut self, x: &'a [T]) -> View {
        if x.is_empty() {
            return View::NONE;
        }
        let bytes = bytemuck::cast_slice(x);
        self.given.write(bytes);
        let at = self.place.view(bytes);
        self.read.push(at);
        // SAFETY: the slice, or the machine's copy of it, lives until `self` is dropped, and nothing writes it.
        unsafe { View::new(at, x.len()) }
    }

    /// A view for writing.
    pub fn write<T: Pod>(&mut self, x: &'a mut [T]) -> View {
        if x.is_empty() {
            return View::NONE;
        }
        let (n, bytes) = (x.len(), bytemuck::cast_slice_mut(x));
        self.given.write(bytes);
        let at = self.place.view_mut(bytes);
        self.written.push((at, bytes));
        // SAFETY: the slice, or the machine's copy of it, lives until `self` is dropped, and is borrowed exclusively.
        unsafe { View::new(at, n) }
    }

    /// Ends the use. Returns a hash of all inputs, and the final contents of each writable slice.
    pub fn end(mut self) -> (u64, Vec<Vec<u8>>) {
        self.give_back();
        // SAFETY: as in `give_back`, which has just ended all other uses.
        let left = self.written.drain(..).map(|(_, bytes)| unsafe { &*bytes }.to_vec()).collect();
        (self.given.finish(), left)
    }

    fn give_back(&mut self) {
        self.read.drain(..).for_each(|at| self.place.end(at));
        for &(at, bytes) in &self.written {
            // SAFETY: the pointer is from a slice that is borrowed exclusively while `self` lives.
            self.place.end_mut(at, unsafe { &mut *bytes });
        }
    }
}

impl Drop for TensorView<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}
