//! One stretch of memory that is cut into blocks as they are asked for. Numbers only: where a block lies follows
//! from the takes and gives before it and from nothing else, so that a rehearsal lays out what the run will.

use crate::ledger::{Accounts, Live, Usage};
use std::collections::{BTreeMap, BTreeSet};

/// The books of a slab. A block is known by where it starts, in bytes from the slab's start.
#[derive(Debug, Default, Clone)]
pub struct Slab {
    /// What lies free between blocks: start -> bytes. No two of them touch.
    gaps: BTreeMap<usize, usize>,
    /// The same as (bytes, start).
    by_size: BTreeSet<(usize, usize)>,
    /// start -> (bytes, how many were taken before it).
    live: BTreeMap<usize, (usize, u64)>,
    /// Behind the last block.
    end: usize,
    taken: u64,
    usage: Usage,
}

impl Slab {
    pub fn new() -> Self {
        Slab::default()
    }

    fn open(&mut self, at: usize, bytes: usize) {
        self.gaps.insert(at, bytes);
        self.by_size.insert((bytes, at));
    }

    fn close(&mut self, at: usize, bytes: usize) {
        self.gaps.remove(&at);
        self.by_size.remove(&(bytes, at));
    }

    /// A start for so many bytes: of the smallest gap that has them, the first among equals, else the end.
    fn place(&mut self, bytes: usize) -> usize {
        let Some(&(room, at)) = self.by_size.range((bytes, 0)..).next() else {
            self.end += bytes;
            return self.end - bytes;
        };
        self.close(at, room);
        if room > bytes {
            self.open(at + bytes, room - bytes);
        }
        at
    }
}

impl Accounts for Slab {
    /// Not of zero bytes.
    fn take(&mut self, bytes: usize) -> usize {
        assert!(bytes > 0, "a block of a slab has bytes");
        let at = self.place(bytes);
        self.live.insert(at, (bytes, self.taken));
        self.taken += 1;
        let usage = &mut self.usage;
        usage.allocations += u64::from(self.end > usage.reserved);
        usage.reserved = usage.reserved.max(self.end);
        usage.in_use += bytes;
        usage.peak = usage.peak.max(usage.in_use);
        at
    }

    fn give(&mut self, bytes: usize, at: usize) {
        let lived = self.live.remove(&at).map(|(bytes, _)| bytes);
        assert_eq!(lived, Some(bytes), "bytes of the block at {at}, which is given back");
        self.usage.in_use -= bytes;
        let (mut start, mut stop) = (at, at + bytes);
        if let Some((&before, &room)) = self.gaps.range(..at).next_back().filter(|(before, room)| *before + *room == at)
        {
            self.close(before, room);
            start = before;
        }
        if let Some(&room) = self.gaps.get(&stop) {
            self.close(stop, room);
            stop += room;
        }
        match stop == self.end {
            true => self.end = start,
            false => self.open(start, stop - start),
        }
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn live(&self) -> Option<Vec<Live>> {
        Some(self.live.iter().map(|(&at, &(bytes, number))| Live { at, bytes, number }).collect())
    }
}
