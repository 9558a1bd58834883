//! A device as a place for tests: it works on copies of their slices, in blocks of exactly their bytes, so that
//! compute-sanitizer sees what goes beyond.

use crate::place::{Kind, Place};
use crate::{PROCESSORS, probes};
use cuda::compile::{Cubin, Places};
use cuda::device::{Device, Memory};
use cuda::machine::{Geometry, Machine, Target};
use cuda::search::Search;
use cuda::tensor::{TensorMap, Tiles};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::OnceLock;

/// A device that launches as the emulator does, for its number of processors, and waits for each launch.
pub struct OnDevice {
    device: &'static Device,
    name: String,
    /// What is lent: the address of its first byte, its block, and where in it that lies.
    lent: RefCell<HashMap<u64, (Memory<&'static Device>, usize)>>,
}

/// The first device with its kernels and the probes, for this thread; None where there is no device.
pub fn open() -> Option<&'static Device> {
    let devices = cuda::devices().expect("a CUDA driver that works");
    if devices.is_empty() {
        return None;
    }
    let var = |name: &str| std::env::var_os(name);
    let (mut device, _) = Device::open(0, &Places::of(var, None)).unwrap_or_else(|e| panic!("{e}"));
    static PROBES: OnceLock<Vec<Cubin>> = OnceLock::new();
    let compile = |file| device.compile(file, &Search::of(var)).unwrap_or_else(|e| panic!("{e}"));
    let files = [&probes::FILE, &probes::HOPPER].into_iter().filter(|file| file.is_for(device.target()));
    let probes = PROBES.get_or_init(|| files.map(compile).collect());
    device.load(probes).unwrap_or_else(|e| panic!("{e}"));
    Some(Box::leak(Box::new(device)))
}

impl OnDevice {
    pub fn new(device: &'static Device, name: String) -> Self {
        OnDevice { device, name, lent: RefCell::default() }
    }

    fn view(&self, bytes: &[u8]) -> u64 {
        let offset = bytes.as_ptr() as usize % 16;
        let mut memory = self.device.alloc(offset + bytes.len()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        memory.write(offset, bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let at = memory.at() + offset as u64;
        self.lent.borrow_mut().insert(at, (memory, offset));
        at
    }

    fn end(&self, at: u64) -> (Memory<&'static Device>, usize) {
        self.lent.borrow_mut().remove(&at).expect("what is ended was lent")
    }
}

impl Machine for OnDevice {
    fn target(&self) -> Target {
        self.device.target()
    }

    fn tensor_map(&self, tiles: Tiles) -> Result<TensorMap, String> {
        self.device.tensor_map(tiles)
    }

    fn processors(&self) -> usize {
        PROCESSORS
    }

    unsafe fn start(&self, kernel: &'static str, args: *const c_void, geometry: Geometry) -> Result<(), String> {
        // SAFETY: this function's contract is that of the device's own.
        unsafe { self.device.start(kernel, args, geometry) }?;
        self.device.sync().map_err(|e| e.to_string())
    }
}

impl Place for OnDevice {
    fn machine(&self) -> &dyn Machine {
        self
    }

    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn view(&self, bytes: &[u8]) -> u64 {
        OnDevice::view(self, bytes)
    }

    fn view_mut(&self, bytes: &mut [u8]) -> u64 {
        OnDevice::view(self, bytes)
    }

    fn end(&self, at: u64) {
        OnDevice::end(self, at);
    }

    fn end_mut(&self, at: u64, bytes: &mut [u8]) {
        let (memory, offset) = OnDevice::end(self, at);
        // A launch that failed has been told of by itself; what it left is of no use.
        _ = memory.read(offset, bytes);
    }
}
