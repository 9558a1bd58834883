//! What a rank that is not there keeps: books, and a log.

use super::log::{Keep, Log, Product, Totals};
use super::memory::{self, DryMem, Kept, Memory, Peak, Use};
use crate::backend::{Elem, Scratch, Tensor};
use crate::memory::free_list::{Allocator, Live};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;

/// One rank of a run that does not take place. `A` is the type of activations and weights.
pub struct Dry<A: Elem> {
    /// The memory rules of the backend that would run.
    pub(super) scratch: Box<dyn Scratch>,
    pub(super) memory: Memory,
    pub(super) log: Rc<RefCell<Log>>,
    /// Whether the head is at work.
    pub(super) in_head: Cell<bool>,
    act: PhantomData<A>,
}

impl<A: Elem> Dry<A> {
    /// Rank `rank` of a mesh, on the backend that `scratch` speaks for; `allocator` are its own, or keep as much.
    pub fn new(rank: usize, scratch: impl Scratch + 'static, allocator: Box<dyn Allocator>, keep: Keep) -> Self {
        let (memory, log) = (Kept::new(allocator), Rc::new(RefCell::new(Log::new(rank, keep))));
        let take = |bytes| memory.borrow_mut().take(scratch.block(bytes), Use::Workspace);
        scratch.fixed().into_iter().for_each(|bytes| _ = take(bytes));
        Dry { scratch: Box::new(scratch), memory, log, in_head: Cell::new(false), act: PhantomData }
    }

    /// What was done so far.
    pub fn log(&self) -> Log {
        self.log.borrow().clone()
    }

    /// How many events it has.
    pub fn events(&self) -> usize {
        self.log.borrow().events.len()
    }

    /// The counts of it alone.
    pub fn totals(&self) -> Totals {
        self.log.borrow().totals.clone()
    }

    /// The blocks that live, as [`Allocator::live`].
    pub fn live(&self) -> Option<Vec<Live>> {
        self.memory.borrow().live()
    }

    /// What the blocks were for that lived at the peak.
    pub fn peak(&self) -> Peak {
        self.memory.borrow().peak()
    }

    /// What a block of this many elements takes.
    pub fn block<T: Elem>(&self, len: usize) -> usize {
        self.scratch.block(len * size_of::<T>())
    }

    pub(super) fn take<T: Elem>(&self, rows: usize, cols: usize, what: Use) -> Tensor<Self, T> {
        let mem = DryMem::take(&self.memory, rows * cols, self.block::<T>(rows * cols), what);
        Tensor::from_mem(mem, rows, cols)
    }

    pub(super) fn op(&self, name: &'static str, sizes: [usize; 3]) {
        self.log.borrow_mut().op(name, sizes);
    }

    /// An op over `[rows, cols]`.
    pub(super) fn over<T: Elem>(&self, name: &'static str, x: &Tensor<Self, T>) {
        self.op(name, [x.rows(), x.cols(), 1]);
    }

    /// Blocks of these bytes are held at once, and given back.
    pub(super) fn pass(&self, blocks: Vec<usize>) {
        let sizes: Vec<usize> = blocks.into_iter().map(|bytes| self.scratch.block(bytes)).collect();
        memory::pass(&self.memory, &sizes);
    }

    pub(super) fn product(&self, name: &'static str, [m, n, k]: [usize; 3], depth: usize) {
        assert_eq!(k, depth, "depth of the product {m} x {k} x {n}");
        self.op(name, [m, n, k]);
        self.log.borrow_mut().products.insert(Product { name, sizes: [m, n, k] });
        self.pass(self.scratch.matmul([m, n, k]));
    }
}
