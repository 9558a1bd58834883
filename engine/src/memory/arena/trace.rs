//! What a rehearsal takes and gives, written down to be laid out in several ways.

use super::{Arena, ArenaSpec};
use crate::memory::free_list::{Allocator, Live, Usage};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Borders below this would set too little apart.
const SMALL: usize = 1 << 20;
/// Takes and gives that say which borders to try first.
const BEGINNING: usize = 1 << 12;

/// All takes and gives so far. A block is known by how many were taken before it.
#[derive(Debug, Default)]
pub struct AllocTrace {
    works: Vec<Work>,
    live: BTreeMap<usize, usize>,
    usage: Usage,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Take(usize),
    Give(usize),
}

impl AllocTrace {
    /// The border between small blocks and large ones with which the least bytes do; of equals the smallest. What is
    /// good at the beginning is tried first, since the others are given up where they are seen to need more.
    pub fn border(&self) -> usize {
        let beginning = &self.works[..self.works.len().min(BEGINNING)];
        let mut borders: Vec<(usize, usize)> = self
            .borders()
            .map(|small| (needed(beginning, small, usize::MAX).expect("there is no limit"), small))
            .collect();
        borders.sort_unstable();
        let mut best = (usize::MAX, 0);
        for (_, small) in borders {
            if let Some(bytes) = self.needed(small, best.0) {
                best = best.min((bytes, small));
            }
        }
        best.1
    }

    /// Bytes that a slab with this border must have, if they are no more than `limit`.
    pub(super) fn needed(&self, small: usize, limit: usize) -> Option<usize> {
        needed(&self.works, small, limit)
    }

    /// No border at all, and one for each size of large blocks.
    fn borders(&self) -> impl Iterator<Item = usize> {
        let sizes = self.works.iter().filter_map(|work| match work {
            Work::Take(bytes) => Some(*bytes).filter(|&bytes| bytes >= SMALL),
            Work::Give(_) => None,
        });
        let mut borders: BTreeSet<usize> = sizes.collect();
        borders.insert(0);
        borders.into_iter()
    }
}

/// As [`AllocTrace::needed`], for these.
fn needed(works: &[Work], small: usize, limit: usize) -> Option<usize> {
    let (mut slab, mut blocks) = (Arena::new(ArenaSpec::boundless(small)), Vec::new());
    for work in works {
        match *work {
            Work::Take(bytes) => blocks.push((bytes, slab.take(bytes))),
            Work::Give(number) => slab.give(blocks[number].0, blocks[number].1),
        }
        if slab.usage().reserved > limit {
            return None;
        }
    }
    Some(slab.usage().reserved)
}

impl Allocator for Rc<RefCell<AllocTrace>> {
    fn take(&mut self, bytes: usize) -> usize {
        let AllocTrace { works, live, usage } = &mut *self.borrow_mut();
        let number = usage.allocations as usize;
        works.push(Work::Take(bytes));
        live.insert(number, bytes);
        usage.allocations += 1;
        usage.in_use += bytes;
        usage.peak = usage.peak.max(usage.in_use);
        usage.reserved = usage.peak;
        number
    }

    fn give(&mut self, bytes: usize, number: usize) {
        let AllocTrace { works, live, usage } = &mut *self.borrow_mut();
        assert_eq!(live.remove(&number), Some(bytes), "bytes of block {number}, which is given back");
        works.push(Work::Give(number));
        usage.in_use -= bytes;
    }

    fn usage(&self) -> Usage {
        self.borrow().usage
    }

    fn live(&self) -> Option<Vec<Live>> {
        let live = |(&at, &bytes)| Live { at, bytes, number: at as u64 };
        Some(self.borrow().live.iter().map(live).collect())
    }
}
