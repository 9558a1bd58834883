//! An allocator over one contiguous range of memory. It computes addresses only, and an address depends on nothing but
//! the earlier allocations and frees: a dry run lays out memory exactly as the run does.
//!
//! Small and large blocks grow from opposite ends to limit fragmentation: a small block in the place of a freed large
//! block would make that place useless for the next large one. [`AllocTrace`] finds the size that separates them best.

mod trace;

use crate::memory::free_list::{Allocator, Live, Usage};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
pub use trace::AllocTrace;

/// The size of an arena and the border between its small and large blocks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ArenaSpec {
    pub bytes: usize,
    /// Blocks of at most this many bytes lie at its far end.
    pub small: usize,
}

impl ArenaSpec {
    /// An arena larger than any memory, to find out how many bytes are needed.
    pub fn boundless(small: usize) -> ArenaSpec {
        ArenaSpec { bytes: 1 << 60, small }
    }
}

/// The allocator. A block is identified by its first byte, counted from the start of the arena. Only the addresses of
/// small blocks, which are counted from the end, depend on the arena's size.
#[derive(Debug, Default, Clone)]
pub struct Arena {
    spec: ArenaSpec,
    /// Free ranges between the blocks of one side: start -> bytes. No two of them are adjacent.
    gaps: BTreeMap<usize, usize>,
    /// The same ranges as (bytes, start), by side.
    by_size: [BTreeSet<(usize, usize)>; 2],
    /// start -> (bytes, number of blocks taken before it).
    live: BTreeMap<usize, (usize, u64)>,
    /// The end of the large blocks and the start of the small ones.
    middle: (usize, usize),
    taken: u64,
    usage: Usage,
}

impl Arena {
    pub fn new(spec: ArenaSpec) -> Self {
        Arena { spec, middle: (0, spec.bytes), ..Arena::default() }
    }

    /// The free range between large and small blocks.
    pub fn middle(&self) -> Range<usize> {
        self.middle.0..self.middle.1
    }

    fn open(&mut self, at: usize, bytes: usize) {
        self.gaps.insert(at, bytes);
        self.by_size[self.side(at)].insert((bytes, at));
    }

    fn close(&mut self, at: usize, bytes: usize) {
        self.gaps.remove(&at);
        self.by_size[self.side(at)].remove(&(bytes, at));
    }

    /// The side of an address: 0 before the middle, 1 behind it.
    fn side(&self, at: usize) -> usize {
        usize::from(at >= self.middle.1)
    }

    /// Best fit: the smallest free range of the block's side that holds it, the first among equals, else the middle.
    fn best_fit(&mut self, bytes: usize) -> usize {
        let small = bytes <= self.spec.small;
        let Some(&(room, at)) = self.by_size[usize::from(small)].range((bytes, 0)..).next() else {
            let (start, end) = self.middle;
            assert!(bytes <= end - start, "a block of {bytes} bytes, {} are left of {:?}", end - start, self.spec);
            self.middle = if small { (start, end - bytes) } else { (start + bytes, end) };
            return if small { end - bytes } else { start };
        };
        self.close(at, room);
        if room > bytes {
            self.open(at + bytes, room - bytes);
        }
        at
    }
}

impl Allocator for Arena {
    /// Panics if the arena is too small. `bytes` must not be 0.
    fn take(&mut self, bytes: usize) -> usize {
        assert!(bytes > 0, "a block of an arena has bytes");
        let at = self.best_fit(bytes);
        self.live.insert(at, (bytes, self.taken));
        self.taken += 1;
        let usage = &mut self.usage;
        let outside = self.spec.bytes - (self.middle.1 - self.middle.0);
        usage.allocations += u64::from(outside > usage.reserved);
        usage.reserved = usage.reserved.max(outside);
        usage.in_use += bytes;
        usage.peak = usage.peak.max(usage.in_use);
        at
    }

    fn give(&mut self, bytes: usize, at: usize) {
        let lived = self.live.remove(&at).map(|(bytes, _)| bytes);
        assert_eq!(lived, Some(bytes), "bytes of the block at {at}, which is given back");
        self.usage.in_use -= bytes;
        let (mut start, mut stop) = (at, at + bytes);
        let before = self.gaps.range(..at).next_back().map(|(&before, &room)| (before, room));
        if let Some((before, room)) = before.filter(|(before, room)| before + room == at) {
            self.close(before, room);
            start = before;
        }
        if let Some(&room) = self.gaps.get(&stop) {
            self.close(stop, room);
            stop += room;
        }
        match self.middle {
            (large, small) if stop == large => self.middle = (start, small),
            (large, small) if start == small => self.middle = (large, stop),
            _ => self.open(start, stop - start),
        }
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn live(&self) -> Option<Vec<Live>> {
        Some(self.live.iter().map(|(&at, &(bytes, number))| Live { at, bytes, number }).collect())
    }
}

#[cfg(test)]
mod tests;
