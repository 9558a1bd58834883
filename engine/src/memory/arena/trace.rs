//! The allocations and frees of a dry run, recorded so that several arena layouts can be tried on them.

use super::{Arena, ArenaSpec};
use crate::memory::free_list::{Allocator, Live, Usage};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The smallest border that is tried between small and large blocks.
const SMALL: usize = 1 << 20;
/// The number of allocations and frees by which borders are ranked before all are tried.
const BEGINNING: usize = 1 << 12;

/// All allocations and frees so far. A block is identified by the number of blocks allocated before it.
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
    /// The border between small and large blocks that needs the fewest bytes; the smallest among equals. Borders that
    /// are good for the beginning of the trace are tried first, so that the others are abandoned early.
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

    /// The bytes that an arena with this border needs; `None` above `limit`.
    pub(super) fn needed(&self, small: usize, limit: usize) -> Option<usize> {
        needed(&self.works, small, limit)
    }

    /// The candidate borders: none, and one at each size of large blocks.
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

/// Like [`AllocTrace::needed`], but for a part of a trace.
fn needed(works: &[Work], small: usize, limit: usize) -> Option<usize> {
    let (mut arena, mut blocks) = (Arena::new(ArenaSpec::boundless(small)), Vec::new());
    for work in works {
        match *work {
            Work::Take(bytes) => blocks.push((bytes, arena.take(bytes))),
            Work::Give(number) => arena.give(blocks[number].0, blocks[number].1),
        }
        if arena.usage().reserved > limit {
            return None;
        }
    }
    Some(arena.usage().reserved)
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
