//! Bindings to the C++ runtime: `runtime/report.h`, and the launch of a kernel by name.

use super::Fault;
use cuda::tensor::{TensorMap, Tiles};
use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub struct Launch {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    pub schedule: u32,
}

#[repr(C)]
pub struct Report {
    pub conflicts: u64,
    pub switches: u64,
    pub copied: u64,
    block: [u32; 3],
    thread: u32,
    line: u32,
    kernel: [u8; 32],
    file: [u8; 32],
    text: [u8; 196],
}

const _: () = assert!(size_of::<Launch>() == 24 && size_of::<Report>() == 304, "as in report.h");

impl Default for Report {
    fn default() -> Self {
        let (kernel, file, text) = ([0; 32], [0; 32], [0; 196]);
        Report { conflicts: 0, switches: 0, copied: 0, block: [0; 3], thread: 0, line: 0, kernel, file, text }
    }
}

impl Report {
    pub fn fault(&self) -> Fault {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|&b| b == 0).next().unwrap_or(&[])).into_owned();
        let (kernel, file, said) = (text(&self.kernel), text(&self.file), text(&self.text));
        Fault { kernel, block: self.block, thread: self.thread, file, line: self.line, text: said }
    }
}

/// The emulator's encoding of a tensor map, as in `runtime/async.h`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Map {
    from: u64,
    elements: u64,
    strides: [u64; 3],
    dims: [u32; 4],
    tile: [u32; 4],
}

const _: () = assert!(size_of::<Map>() == 72, "as in async.h");

impl Map {
    pub fn of(tiles: Tiles) -> Self {
        Map {
            from: tiles.of.at(),
            elements: tiles.of.len() as u64,
            strides: tiles.strides().map(|s| s as u64),
            dims: tiles.dims().map(|d| d as u32),
            tile: tiles.tile().map(|t| t as u32),
        }
    }
}

impl From<Map> for TensorMap {
    fn from(map: Map) -> Self {
        let mut words = [0; 16];
        words[..9].copy_from_slice(bytemuck::cast_slice(&[map]));
        TensorMap(words)
    }
}

/// `emu_run`: name and its length, arguments, launch, report. Returns 0 on success, -1 if there is no such kernel.
pub type Run = unsafe extern "C" fn(*const c_char, usize, *const c_void, *const Launch, *mut Report) -> c_int;

unsafe extern "C" {
    pub fn emu_run(
        name: *const c_char,
        length: usize,
        args: *const c_void,
        launch: *const Launch,
        report: *mut Report,
    ) -> c_int;

    /// The size of a kernel's arguments, by name and the name's length; 0 if there is no such kernel.
    pub fn emu_args_size(name: *const c_char, length: usize) -> usize;
}
