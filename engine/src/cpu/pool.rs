//! The caching allocator of the CPU backend: a dropped block returns to a free list, so that after the first step no
//! memory is taken from the system. One thread owns a pool; ops lend slices of its blocks to other threads.

use crate::backend::Elem;
use crate::memory::free_list::{FreeList, Usage};
use std::alloc::{Layout, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

/// A cache line, and the widest vector.
const ALIGN: usize = 64;
/// Blocks from this size on are aligned to huge pages and ask for them.
const HUGE: usize = 2 << 20;

/// The free blocks, and the statistics of all blocks.
#[derive(Default)]
pub struct Pool {
    allocator: RefCell<FreeList<NonNull<u8>>>,
}

/// An array in a block of a pool, or a view of a part of one.
pub struct Block<T: Elem> {
    at: NonNull<T>,
    len: usize,
    /// The pool and the block's size; `None` for a view, which returns nothing.
    home: Option<(Rc<Pool>, usize)>,
}

impl Pool {
    /// A block of `len` elements with what it held before, or zeros if it is new.
    pub fn take<T: Elem>(self: &Rc<Self>, len: usize) -> Block<T> {
        let bytes = len.checked_mul(size_of::<T>()).expect("a block is smaller than the address space");
        let size = size_class(bytes);
        let at = self.allocator.borrow_mut().take(size, || from_system(size));
        Block { at: at.cast(), len, home: Some((self.clone(), size)) }
    }

    pub fn usage(&self) -> Usage {
        self.allocator.borrow().usage()
    }
}

/// The size of a block for `bytes` bytes: at most an eighth more, so that tensors of nearly one size share blocks.
pub fn size_class(bytes: usize) -> usize {
    let step = (bytes.next_power_of_two() / 16).clamp(ALIGN, 1 << 20);
    bytes.max(1).next_multiple_of(step)
}

fn layout(size: usize) -> Layout {
    let align = if size >= HUGE { HUGE } else { ALIGN };
    Layout::from_size_align(size, align).expect("a block's size is below isize::MAX")
}

fn from_system(size: usize) -> NonNull<u8> {
    let layout = layout(size);
    // SAFETY: the size is not zero (`size_class`).
    let at = unsafe { std::alloc::alloc(layout) };
    let Some(at) = NonNull::new(at) else { handle_alloc_error(layout) };
    if size >= HUGE {
        // Fewer page faults and TLB misses; if the kernel declines, nothing is lost.
        // SAFETY: advice on memory that was just allocated, from a page's start.
        unsafe { nix::libc::madvise(at.as_ptr().cast(), size, nix::libc::MADV_HUGEPAGE) };
    }
    // SAFETY: `size` bytes were allocated. Writing them makes every slice of them initialised, and touches every page
    // now rather than in an op.
    unsafe { at.as_ptr().write_bytes(0, size) };
    at
}

impl Drop for Pool {
    fn drop(&mut self) {
        for (size, at) in self.allocator.get_mut().drain() {
            // SAFETY: it came from `from_system(size)`; every block keeps the pool alive, so all have returned.
            unsafe { dealloc(at.as_ptr(), layout(size)) };
        }
    }
}

impl<T: Elem> Block<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn as_ptr(&self) -> *const T {
        self.at.as_ptr()
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` initialised elements (`from_system` wrote them, and any bits are a valid `Elem`),
        // aligned to 64 bytes or to T inside such a block; a view does not outlive its block (`alias`).
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above; this block or view is the only one of its elements that is used while it is
        // borrowed exclusively (`alias`).
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// A view of `range`, which returns nothing to the pool.
    ///
    /// # Safety
    /// See [`crate::backend::Backend::alias`].
    pub unsafe fn alias(&self, range: Range<usize>) -> Block<T> {
        assert!(range.start <= range.end && range.end <= self.len, "view {range:?} of a block of {}", self.len);
        // SAFETY: inside the block, as asserted.
        let at = unsafe { self.at.add(range.start) };
        Block { at, len: range.len(), home: None }
    }
}

impl<T: Elem> Drop for Block<T> {
    fn drop(&mut self) {
        let Some((pool, size)) = self.home.take() else { return };
        pool.allocator.borrow_mut().give(size, self.at.cast());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_block_is_taken_again() {
        let pool = Rc::new(Pool::default());
        for _ in 0..3 {
            let (a, b) = (pool.take::<f32>(1000), pool.take::<u32>(1000));
            assert_ne!(a.as_ptr().cast(), b.as_ptr());
            assert_eq!(a.as_ptr() as usize % ALIGN, 0);
        }
        let usage = pool.usage();
        assert_eq!((usage.allocations, usage.in_use, usage.peak), (2, 0, usage.reserved));
    }

    #[test]
    fn views_give_nothing_back() {
        let pool = Rc::new(Pool::default());
        let mut block = pool.take::<f32>(10);
        // SAFETY: the view is dropped before the block is used again.
        unsafe { block.alias(2..5) }.as_mut_slice().fill(1.0);
        assert_eq!(block.as_mut_slice()[1..6], [0.0, 1.0, 1.0, 1.0, 0.0]);
        assert_ne!(pool.usage().in_use, 0);
    }

    #[test]
    fn size_classes_waste_an_eighth_at_most() {
        for bytes in [1, 64, 65, 1000, 5000, 1 << 20, (1 << 20) + 1, 77_777_777] {
            let size = size_class(bytes);
            assert!(
                size >= bytes && size.is_multiple_of(ALIGN) && size <= bytes + bytes / 8 + ALIGN,
                "{bytes} -> {size}"
            );
            assert_eq!(size_class(size), size);
        }
    }

    #[test]
    fn an_empty_tensor_has_a_block_too() {
        assert!(Rc::new(Pool::default()).take::<f32>(0).is_empty());
    }
}
