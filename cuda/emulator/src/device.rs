//! A real device for the tests. Kernels work on copies of the tests' slices, in blocks of exactly their size, so that
//! compute-sanitizer detects accesses out of bounds.

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

/// A device with the launch geometry of the emulator, which synchronizes after each launch.
pub struct OnDevice {
    device: &'static Device,
    name: String,
    /// Slices in use: the address of the first byte, the block, and the offset in it.
    lent: RefCell<HashMap<u64, (Memory<&'static Device>, usize)>>,
}

/// Opens the first device with its kernels and the probes, for this thread; None without a device.
pub fn open() -> Option<&'static Device> {
    let devices = cuda::devices().expect("the CUDA driver works");
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
        self.lent.borrow_mut().remove(&at).expect("the slice is in use")
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
        // SAFETY: both functions have the same contract.
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
        // The launch itself returns an error, and the result of a failed launch is not used.
        _ = memory.read(offset, bytes);
    }
}
