//! Blocks of the arena.

use super::rank::Rank;
use engine::backend::{Elem, Scratch};
use engine::memory::free_list::Allocator;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

/// Elements in device memory. Dropping a block returns it to the arena, unless it is a view of another block.
pub struct Block<T: Elem> {
    at: u64,
    len: usize,
    home: Option<Home>,
    elem: PhantomData<T>,
}

/// The arena that owns a block.
struct Home {
    rank: Rc<Rank>,
    offset: usize,
    bytes: usize,
}

impl<T: Elem> Block<T> {
    pub(super) fn take(rank: &Rc<Rank>, len: usize) -> Self {
        let bytes = rank.scratch.block(len * size_of::<T>());
        let offset = rank.allocator.borrow_mut().take(bytes);
        let at = rank.arena().at() + offset as u64;
        let end = offset + bytes;
        assert!(end <= rank.arena().len(), "a block up to byte {end} of an arena of {}", rank.arena().len());
        Block { at, len, home: Some(Home { rank: rank.clone(), offset, bytes }), elem: PhantomData }
    }

    /// The address of the first element.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The addresses of its bytes.
    pub(super) fn bytes(&self) -> Range<u64> {
        self.at..self.at + (self.len * size_of::<T>()) as u64
    }

    /// # Safety
    /// The same contract as [`engine::backend::Backend::alias`].
    pub(super) unsafe fn alias(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "view {range:?} of a block of {}", self.len);
        let at = self.at + (range.start * size_of::<T>()) as u64;
        Block { at, len: range.len(), home: None, elem: PhantomData }
    }
}

impl<T: Elem> Drop for Block<T> {
    fn drop(&mut self) {
        if let Some(Home { rank, offset, bytes }) = self.home.take() {
            rank.before_change(self.bytes());
            rank.allocator.borrow_mut().give(bytes, offset);
        }
    }
}
