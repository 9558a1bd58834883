//! The memory that a kernel sees: slices of global memory, the shared memory of a block, its parameters.

/// Shared memory begins here, at a multiple of 1024 that is not 0 so that a lost base shows.
pub const SHARED: u64 = 3 << 10;
const _: () = assert!(SHARED.is_multiple_of(1024), "swizzles repeat every 1024 bytes");

/// Where shared and parameter memory lie among generic addresses (PTX ISA, "Generic addressing"). Global addresses are
/// generic ones as they are.
pub const SHARED_WINDOW: u64 = 0x7f00_4000_0000;
pub const PARAM_WINDOW: u64 = 0x7e00_0000_0000;

/// Slices of global memory. Every other access is an error.
#[derive(Default)]
pub struct Global {
    slices: Vec<(u64, Vec<u8>)>,
    made: u64,
}

impl Global {
    /// Adds a slice and returns its address, which has the same remainder modulo 16 as the original's.
    pub fn add(&mut self, bytes: &[u8]) -> u64 {
        self.made += 1;
        let at = (self.made << 32) + bytes.as_ptr() as u64 % 16;
        self.slices.push((at, bytes.to_vec()));
        at
    }

    pub fn remove(&mut self, at: u64) -> Vec<u8> {
        let i = self.slices.iter().position(|(start, _)| *start == at).expect("the slice is in use");
        self.slices.swap_remove(i).1
    }

    pub fn bytes(&mut self, at: u64, n: usize) -> Result<&mut [u8], String> {
        let slice = self.slices.iter_mut().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at));
        slice
            .and_then(|(start, bytes)| bytes.get_mut((at - *start) as usize..)?.get_mut(..n))
            .ok_or_else(|| format!("out of bounds: {n} bytes of global memory at {at:#x}"))
    }
}

/// The shared memory of a block.
pub struct Shared(Vec<u8>);

impl Shared {
    /// Memory whose content nobody should read.
    pub fn new(bytes: usize) -> Shared {
        Shared((0..bytes).map(|i| (i * 37 + 0xa5) as u8).collect())
    }

    pub fn bytes(&mut self, at: u64, n: usize) -> Result<&mut [u8], String> {
        let from = at.checked_sub(SHARED).map(|from| from as usize);
        from.and_then(|from| self.0.get_mut(from..)?.get_mut(..n))
            .ok_or_else(|| format!("out of bounds: {n} bytes of shared memory at {at:#x}"))
    }
}

/// Whether an access of n bytes is aligned to them, as all must be.
pub fn aligned(at: u64, n: usize) -> Result<(), String> {
    if at.is_multiple_of(n as u64) { Ok(()) } else { Err(format!("misaligned: {n} bytes at {at:#x}")) }
}

/// A number in little-endian order.
pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |x, &byte| x << 8 | u64::from(byte))
}
