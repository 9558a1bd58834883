//! Memory of devices and pinned memory of the host: blocks of host memory, by their addresses.

use crate::code::{INVALID_VALUE, OUT_OF_MEMORY, Said, die};
use crate::settings::settings;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Of every block's first byte.
const ALIGN: usize = 512;
/// A NaN in bf16 and f32, and no index of anything.
const NEVER_WRITTEN: u8 = 0xff;

/// Whose memory a block is.
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
    Layout::from_size_align(len, ALIGN).unwrap_or_else(|_| die(&format!("a block of {len} bytes")))
}

fn used(blocks: &BTreeMap<u64, Block>, device: i32) -> usize {
    blocks.values().filter(|b| b.kind == Kind::Device(device)).map(|b| b.len).sum()
}

/// Bytes of a device that are not allocated.
pub fn free_bytes(device: i32) -> usize {
    settings().memory - used(&BLOCKS.lock().expect("no holder panics"), device)
}

/// A block of `len` bytes that nobody has written.
pub fn take(len: usize, kind: Kind) -> Said<u64> {
    if len == 0 {
        return Err(INVALID_VALUE);
    }
    let mut blocks = BLOCKS.lock().expect("no holder panics");
    if let Kind::Device(device) = kind
        && len > settings().memory - used(&blocks, device)
    {
        return Err(OUT_OF_MEMORY);
    }
    // SAFETY: the layout is of more than no bytes, and as many are written as were given.
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

/// Frees a block of `device` memory or of pinned one. Any other address is a bug that ends the process.
pub fn give(at: u64, pinned: bool) {
    let block = BLOCKS.lock().expect("no holder panics").remove(&at);
    let block = block.unwrap_or_else(|| die(&format!("free of {at:#x}, where no block begins")));
    if pinned != (block.kind == Kind::Pinned) {
        die(&format!("free of {at:#x}, which is {:?} memory", block.kind));
    }
    // SAFETY: it was allocated with this layout, and the table knew of it until now.
    unsafe { dealloc(at as *mut u8, layout(block.len)) };
}

/// Whose memory these bytes are, all of one block; None where no block holds them.
pub fn kind(at: u64, len: usize) -> Option<Kind> {
    let blocks = BLOCKS.lock().expect("no holder panics");
    let (from, block) = blocks.range(..=at).next_back()?;
    let end = at.checked_add(len as u64)?;
    (end <= from + block.len as u64 && at < from + block.len as u64).then_some(block.kind)
}

/// Whether a kernel or a copy may use these bytes, of a device or pinned.
pub fn known(at: u64, len: usize) -> Said<()> {
    kind(at, len).map(|_| ()).ok_or(INVALID_VALUE)
}

/// Copies bytes of blocks that may overlap.
///
/// # Safety
/// Both ranges are of memory that lives.
pub unsafe fn copy(to: u64, from: u64, len: usize) {
    // SAFETY: by this function's contract.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, len) }
}
