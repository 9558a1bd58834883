//! Blocks without memory: their lengths, the real backend's allocator, and the uses of the blocks.

use crate::backend::Elem;
use crate::memory::free_list::{Allocator, Live, Usage};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

/// The memory of one rank.
pub(super) type Memory = Rc<RefCell<Tracker>>;

/// Bytes at the peak by use; all the rest is weights, gradients, optimizer state and activations.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Peak {
    /// Fixed workspace and scratch of the ops.
    pub workspace: usize,
    /// Logits and their statistics.
    pub logits: usize,
    /// Buffers of collectives and messages in flight.
    pub communication: usize,
}

/// The use of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Workspace,
    Logits,
    Other,
}

/// An allocator, and the bytes in use by purpose.
pub(super) struct Tracker {
    allocator: Box<dyn Allocator>,
    now: Peak,
    other: usize,
    at_peak: Peak,
}

impl Tracker {
    pub fn new(allocator: Box<dyn Allocator>) -> Memory {
        Rc::new(RefCell::new(Tracker { allocator, now: Peak::default(), other: 0, at_peak: Peak::default() }))
    }

    pub fn take(&mut self, bytes: usize, what: Use) -> usize {
        let peak = self.allocator.usage().peak;
        let at = self.allocator.take(bytes);
        *self.of(what) += bytes;
        if self.allocator.usage().peak > peak {
            self.at_peak = self.now;
        }
        at
    }

    fn give(&mut self, bytes: usize, at: usize, what: Use) {
        self.allocator.give(bytes, at);
        *self.of(what) -= bytes;
    }

    fn of(&mut self, what: Use) -> &mut usize {
        match what {
            Use::Workspace => &mut self.now.workspace,
            Use::Logits => &mut self.now.logits,
            Use::Other => &mut self.other,
        }
    }

    /// Counts bytes as in flight until [`Tracker::arrive`].
    pub fn depart(&mut self, bytes: usize) {
        self.now.communication += bytes;
    }

    pub fn arrive(&mut self, bytes: usize) {
        self.now.communication -= bytes;
    }

    pub fn usage(&self) -> Usage {
        self.allocator.usage()
    }

    pub fn peak(&self) -> Peak {
        self.at_peak
    }

    pub fn live(&self) -> Option<Vec<Live>> {
        self.allocator.live()
    }
}

/// A block, or a view of one.
pub struct DryMem<T: Elem> {
    len: usize,
    /// The allocation that is freed with the block; `None` for a view.
    home: Option<Home>,
    elem: PhantomData<T>,
}

struct Home {
    memory: Memory,
    bytes: usize,
    at: usize,
    what: Use,
}

impl<T: Elem> DryMem<T> {
    /// `bytes`: size of the block that the backend allocates for `len` elements.
    pub(super) fn take(memory: &Memory, len: usize, bytes: usize, what: Use) -> Self {
        let at = memory.borrow_mut().take(bytes, what);
        DryMem { len, home: Some(Home { memory: memory.clone(), bytes, at, what }), elem: PhantomData }
    }

    pub(super) fn alias(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "view {range:?} of a block of {}", self.len);
        DryMem { len: range.len(), home: None, elem: PhantomData }
    }
}

impl<T: Elem> Drop for DryMem<T> {
    fn drop(&mut self) {
        if let Some(Home { memory, bytes, at, what }) = self.home.take() {
            memory.borrow_mut().give(bytes, at, what);
        }
    }
}

/// Allocates blocks of these sizes together and frees them.
pub(super) fn hold(memory: &Memory, sizes: &[usize]) {
    let mut memory = memory.borrow_mut();
    let taken: Vec<usize> = sizes.iter().map(|&bytes| memory.take(bytes, Use::Workspace)).collect();
    sizes.iter().zip(taken).for_each(|(&bytes, at)| memory.give(bytes, at, Use::Workspace));
}
