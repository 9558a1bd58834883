//! A device as a place for a test's slices: copies of them, each between two fences that no kernel may touch.

use crate::place::Place;
use cuda::Device;
use cuda::compile::Places;
use cuda::device::{Error, Memory};
use cuda::machine::Machine;
use std::cell::RefCell;
use std::collections::HashMap;

/// Bytes before and behind a slice.
const FENCE: usize = 256;
/// What they hold, and what a slice's memory holds before.
const PATTERN: u8 = 0xa5;

/// A device with what is lent to it.
pub struct OnDevice {
    device: &'static Device,
    /// By the address that kernels were told.
    lent: RefCell<HashMap<u64, Copied>>,
}

/// A slice's copy, from byte `start` of a block on.
struct Copied {
    block: Memory<'static>,
    start: usize,
    len: usize,
}

impl OnDevice {
    /// The first device, which stays open; says what the kernels' places have to tell.
    pub fn open(places: &Places) -> Result<Self, Error> {
        let (device, notes) = Device::open(0, places)?;
        notes.iter().for_each(|note| eprintln!("note: {note}"));
        Ok(OnDevice { device: Box::leak(Box::new(device)), lent: RefCell::default() })
    }

    fn copy(&self, bytes: &[u8]) -> Result<u64, Error> {
        // The driver's blocks begin at multiples of 256.
        let (start, len) = (FENCE + bytes.as_ptr() as usize % 16, bytes.len());
        let mut block = self.device.alloc(start + len + FENCE)?;
        block.fill(PATTERN)?;
        block.write(start, bytes)?;
        let at = block.at() + start as u64;
        self.lent.borrow_mut().insert(at, Copied { block, start, len });
        Ok(at)
    }

    /// What kernels left in a slice's memory; the fences must be as they were.
    fn take(&self, at: u64) -> Result<Vec<u8>, Error> {
        let Copied { block, start, len } = self.lent.borrow_mut().remove(&at).expect("it was lent");
        let mut all = vec![0; block.len()];
        block.read(0, &mut all)?;
        let outside = (0..start).chain(start + len..all.len());
        for byte in outside {
            assert_eq!(all[byte], PATTERN, "{}: byte {byte} was written, outside of {start} + {len}", self.name());
        }
        Ok(all[start..start + len].to_vec())
    }
}

impl Place for OnDevice {
    fn machine(&self) -> &dyn Machine {
        self.device
    }

    fn name(&self) -> String {
        self.device.info().name.clone()
    }

    fn lend(&self, bytes: &[u8]) -> u64 {
        self.copy(bytes).unwrap_or_else(|fault| panic!("{}: {fault}", self.name()))
    }

    fn lend_mut(&self, bytes: &mut [u8]) -> u64 {
        self.lend(bytes)
    }

    fn end(&self, at: u64) {
        self.take(at).unwrap_or_else(|fault| panic!("{}: {fault}", self.name()));
    }

    fn end_mut(&self, at: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.take(at).unwrap_or_else(|fault| panic!("{}: {fault}", self.name())));
    }
}
