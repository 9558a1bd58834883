//! The books of a backend's memory: which blocks are free, and what was taken. Numbers only, so that the
//! CPU's pool and the dry run, which has no memory, keep them alike: one trace gives one usage.
//! What a slab's books are is in `slab.rs`.

use std::collections::HashMap;

/// What a backend's memory has handed out so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Blocks that had to be taken from the system; how often a slab grew.
    pub allocations: u64,
    /// Bytes taken from the system; of a slab the most that was needed of it, free or not.
    pub reserved: usize,
    /// Bytes of the blocks that live now.
    pub in_use: usize,
    /// The most that `in_use` has been.
    pub peak: usize,
}

/// A block that was taken and not given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    pub at: usize,
    pub bytes: usize,
    /// How many were taken before it.
    pub number: u64,
}

/// Books that are kept of memory that need not be there.
pub trait Allocator {
    /// Where a block of this size is.
    fn take(&mut self, size: usize) -> usize;
    /// The block of this size that `take` gave.
    fn give(&mut self, size: usize, at: usize);
    fn usage(&self) -> Usage;
    /// All blocks that live, in the order of their places; `None` of books for which one block is as good as another.
    fn live(&self) -> Option<Vec<Live>>;
}

/// Free blocks by size; `P` is what a block is known by.
#[derive(Debug)]
pub struct FreeList<P> {
    free: HashMap<usize, Vec<P>>,
    usage: Usage,
}

impl<P> Default for FreeList<P> {
    fn default() -> Self {
        FreeList { free: HashMap::new(), usage: Usage::default() }
    }
}

impl<P> FreeList<P> {
    /// A free block of just this size, or a new one.
    pub fn take(&mut self, size: usize, new: impl FnOnce() -> P) -> P {
        let block = self.free.get_mut(&size).and_then(Vec::pop).unwrap_or_else(|| {
            self.usage.allocations += 1;
            self.usage.reserved += size;
            new()
        });
        self.usage.in_use += size;
        self.usage.peak = self.usage.peak.max(self.usage.in_use);
        block
    }

    pub fn give(&mut self, size: usize, block: P) {
        self.usage.in_use -= size;
        self.free.entry(size).or_default().push(block);
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// All free blocks with their sizes, for good.
    pub fn drain(&mut self) -> impl Iterator<Item = (usize, P)> {
        self.free.drain().flat_map(|(size, blocks)| blocks.into_iter().map(move |block| (size, block)))
    }
}

/// Of blocks that are nowhere.
impl Allocator for FreeList<()> {
    fn take(&mut self, size: usize) -> usize {
        FreeList::take(self, size, || ());
        0
    }

    fn give(&mut self, size: usize, _: usize) {
        FreeList::give(self, size, ());
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn live(&self) -> Option<Vec<Live>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_block_of_its_size_is_taken_again() {
        let mut allocator = FreeList::default();
        let mut next = 0..;
        let mut take = |allocator: &mut FreeList<i32>, size| allocator.take(size, || next.next().unwrap());
        assert_eq!([take(&mut allocator, 64), take(&mut allocator, 64), take(&mut allocator, 128)], [0, 1, 2]);
        allocator.give(64, 1);
        assert_eq!([take(&mut allocator, 128), take(&mut allocator, 64)], [3, 1]);
        allocator.give(128, 2);
        assert_eq!(allocator.usage(), Usage { allocations: 4, reserved: 384, in_use: 256, peak: 384 });
        assert_eq!(allocator.drain().collect::<Vec<_>>(), [(128, 2)]);
    }
}
