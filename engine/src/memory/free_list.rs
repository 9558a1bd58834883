//! Free blocks by exact size, and how much memory is in use. The CPU backend's pool and its dry run, which has no
//! memory, use the same list: the same allocations and frees result in the same usage. `arena.rs` is the allocator of
//! devices.

use std::collections::HashMap;

/// Allocator statistics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Blocks that were taken from the system; for an arena, how often its high-water mark rose.
    pub allocations: u64,
    /// Bytes taken from the system; for an arena, its high-water mark with fragmentation.
    pub reserved: usize,
    /// Bytes of live blocks.
    pub in_use: usize,
    /// The maximum of `in_use`.
    pub peak: usize,
}

/// A block in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    pub at: usize,
    pub bytes: usize,
    /// The number of blocks that were allocated before it.
    pub number: u64,
}

/// An allocator of addresses; there need not be memory behind them.
pub trait Allocator {
    /// The address of a new block of this size.
    fn take(&mut self, size: usize) -> usize;
    /// Frees the block of this size at the address that `take` returned.
    fn give(&mut self, size: usize, at: usize);
    fn usage(&self) -> Usage;
    /// All live blocks in the order of their addresses; `None` from an allocator without addresses.
    fn live(&self) -> Option<Vec<Live>>;
}

/// Free blocks by size; `P` identifies a block.
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
    /// A free block of exactly this size, or a new one.
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

    /// Removes all free blocks and returns them with their sizes.
    pub fn drain(&mut self) -> impl Iterator<Item = (usize, P)> {
        self.free.drain().flat_map(|(size, blocks)| blocks.into_iter().map(move |block| (size, block)))
    }
}

/// An allocator without addresses: every block is at 0.
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
