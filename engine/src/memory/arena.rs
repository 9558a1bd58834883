//! One stretch of memory that is cut into blocks as they are asked for. Numbers only: where a block lies follows
//! from the takes and gives before it and from nothing else, so that a rehearsal lays out what the run will.
//!
//! Large blocks fill the slab from its start, small ones from its end, and what is free lies between. What activations
//! leave behind in places where larger ones were would be lost to both: a border between them costs less, and where it
//! is best a [`AllocTrace`] finds out.

mod trace;

use crate::memory::free_list::{Allocator, Live, Usage};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
pub use trace::AllocTrace;

/// How a slab is cut.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ArenaSpec {
    /// Of the slab.
    pub bytes: usize,
    /// Blocks of so many bytes and fewer lie at its end.
    pub small: usize,
}

impl ArenaSpec {
    /// To find out how many bytes are needed: more than there are anywhere.
    pub fn boundless(small: usize) -> ArenaSpec {
        ArenaSpec { bytes: 1 << 60, small }
    }
}

/// The books of a slab. A block is known by where it starts, in bytes from the slab's start. Nothing but addresses
/// near the end depends on the slab's length, as long as it is enough.
#[derive(Debug, Default, Clone)]
pub struct Arena {
    cut: ArenaSpec,
    /// What lies free between blocks of one side: start -> bytes. No two of them touch.
    gaps: BTreeMap<usize, usize>,
    /// The same as (bytes, start), by side.
    by_size: [BTreeSet<(usize, usize)>; 2],
    /// start -> (bytes, how many were taken before it).
    live: BTreeMap<usize, (usize, u64)>,
    /// Where the large blocks end, and where the small ones begin.
    middle: (usize, usize),
    taken: u64,
    usage: Usage,
}

impl Arena {
    pub fn new(cut: ArenaSpec) -> Self {
        Arena { cut, middle: (0, cut.bytes), ..Arena::default() }
    }

    /// What lies free between large blocks and small ones.
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

    /// The side of what starts here: 1 behind the middle.
    fn side(&self, at: usize) -> usize {
        usize::from(at >= self.middle.1)
    }

    /// A start for so many bytes: of the smallest gap of its side that has them, the first among equals, else in the
    /// middle.
    fn place(&mut self, bytes: usize) -> usize {
        let small = bytes <= self.cut.small;
        let Some(&(room, at)) = self.by_size[usize::from(small)].range((bytes, 0)..).next() else {
            let (start, end) = self.middle;
            assert!(bytes <= end - start, "a block of {bytes} bytes, {} are left of {:?}", end - start, self.cut);
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
    /// Not of zero bytes. Panics where the slab is too short.
    fn take(&mut self, bytes: usize) -> usize {
        assert!(bytes > 0, "a block of a slab has bytes");
        let at = self.place(bytes);
        self.live.insert(at, (bytes, self.taken));
        self.taken += 1;
        let usage = &mut self.usage;
        let outside = self.cut.bytes - (self.middle.1 - self.middle.0);
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
