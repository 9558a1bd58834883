//! Device memory and pinned host memory: both are blocks of host memory, by address.

use crate::code::{INVALID_VALUE, OUT_OF_MEMORY, Outcome, abort};
use crate::settings::settings;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The alignment of blocks in bytes.
const ALIGN: usize = 512;
/// The initial byte: NaN in bf16 and f32, and an invalid index.
const NEVER_WRITTEN: u8 = 0xff;

/// The kind of memory of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Device(i32),
    Pinned,
}

struct Block {
    len: usize,
    kind: Kind,
}

static BLOCKS: Mutex<BTreeMap<u64, Block>> = Mutex::new(BTreeMap::new());

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, ALIGN).unwrap_or_else(|_| abort(&format!("a block of {len} bytes")))
}

fn used(blocks: &BTreeMap<u64, Block>, device: i32) -> usize {
    blocks.values().filter(|b| b.kind == Kind::Device(device)).map(|b| b.len).sum()
}

/// Free bytes of a device.
pub fn free_bytes(device: i32) -> usize {
    settings().memory - used(&BLOCKS.lock().expect("no holder panics"), device)
}

/// Allocates a block of `len` bytes.
pub fn allocate(len: usize, kind: Kind) -> Outcome<u64> {
    if len == 0 {
        return Err(INVALID_VALUE);
    }
    let mut blocks = BLOCKS.lock().expect("no holder panics");
    if let Kind::Device(device) = kind
        && len > settings().memory - used(&blocks, device)
    {
        return Err(OUT_OF_MEMORY);
    }
    // SAFETY: the layout's size is not zero, and only the allocated bytes are written.
    let at = unsafe {
        let at = alloc(layout(len));
        if at.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        at.write_bytes(NEVER_WRITTEN, len);
        at as u64
    };
    blocks.insert(at, Block { len, kind });
    Ok(at)
}

/// Frees a block of device or of pinned memory. Any other address is a bug, which ends the process.
pub fn free(at: u64, pinned: bool) {
    let block = BLOCKS.lock().expect("no holder panics").remove(&at);
    let block = block.unwrap_or_else(|| abort(&format!("free of {at:#x}, where no block begins")));
    if pinned != (block.kind == Kind::Pinned) {
        abort(&format!("free of {at:#x}, which is {:?} memory", block.kind));
    }
    // SAFETY: the block was allocated with this layout, and it was in the table until now.
    unsafe { dealloc(at as *mut u8, layout(block.len)) };
}

/// The kind of memory of these bytes; None if they do not lie in one block.
pub fn kind(at: u64, len: usize) -> Option<Kind> {
    let blocks = BLOCKS.lock().expect("no holder panics");
    let (from, block) = blocks.range(..=at).next_back()?;
    let end = at.checked_add(len as u64)?;
    (end <= from + block.len as u64 && at < from + block.len as u64).then_some(block.kind)
}

/// Checks that the bytes lie in one block of device or pinned memory.
pub fn known(at: u64, len: usize) -> Outcome<()> {
    kind(at, len).map(|_| ()).ok_or(INVALID_VALUE)
}

/// Copies bytes; the ranges may overlap.
///
/// # Safety
/// Both ranges are live memory.
pub unsafe fn copy(to: u64, from: u64, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) }
}
