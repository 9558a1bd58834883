//! Blocks that a stream beside the compute stream still reads: what changes them waits for it.

use super::memory::Block;
use super::rank::Rank;
use crate::device::Event;
use engine::backend::Elem;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Reads under way, of addresses.
#[derive(Default)]
pub(super) struct Reads(RefCell<Vec<(Range<u64>, Arc<Event>)>>);

impl Reads {
    pub fn add(&self, bytes: Range<u64>, done: Arc<Event>) {
        let mut reads = self.0.borrow_mut();
        reads.retain(|(_, done)| !matches!(done.is_past(), Ok(true)));
        reads.push((bytes, done));
    }

    /// Takes those of these bytes.
    fn of(&self, bytes: Range<u64>) -> Vec<Arc<Event>> {
        let mut reads = self.0.borrow_mut();
        let touches = |read: &Range<u64>| read.start < bytes.end && bytes.start < read.end;
        reads.extract_if(.., |(read, _)| touches(read)).map(|(_, done)| done).collect()
    }
}

impl Rank {
    /// What comes next on the compute stream may change the block.
    pub(super) fn before_change<T: Elem>(&self, block: &Block<T>) {
        for done in self.reads.of(block.bytes()) {
            self.must(self.device.stream().wait(&done));
        }
    }
}
