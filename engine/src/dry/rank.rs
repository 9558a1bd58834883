//! The state of one rank of a dry run: an allocator and a log.

use super::expect;
use super::log::{Keep, Log, Product, Totals};
use super::memory::{self, DryMem, Memory, Peak, Tracker, Use};
use crate::backend::{Acc, Act, Elem, Form, Op, Operands, Scratch, Tensor};
use crate::memory::free_list::{Allocator, Live};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::rc::Rc;

/// One rank of a dry run. `A` is the type of activations and weights.
pub struct Dry<A: Elem> {
    /// The scratch sizes of the backend that this one stands in for.
    pub(super) scratch: Box<dyn Scratch>,
    pub(super) memory: Memory,
    pub(super) log: Rc<RefCell<Log>>,
    /// Whether the next ops belong to the head.
    pub(super) in_head: Cell<bool>,
    /// The rows of the most loaded rank that shares experts, as a multiple of the mean.
    pub(super) imbalance: f64,
    act: PhantomData<A>,
}

impl<A: Elem> Dry<A> {
    /// Rank `rank` of a mesh, with the scratch sizes `scratch`; `allocator` is the allocator of that backend.
    pub fn new(rank: usize, scratch: impl Scratch + 'static, allocator: Box<dyn Allocator>, keep: Keep) -> Self {
        let (memory, log) = (Tracker::new(allocator), Rc::new(RefCell::new(Log::new(rank, keep))));
        let take = |bytes| memory.borrow_mut().take(scratch.block(bytes), Use::Workspace);
        scratch.fixed().into_iter().for_each(|bytes| _ = take(bytes));
        Dry { scratch: Box::new(scratch), memory, log, in_head: Cell::new(false), imbalance: 1.0, act: PhantomData }
    }

    /// Experts of this rank get `imbalance` times as many rows as on average.
    pub fn imbalance(self, imbalance: f64) -> Self {
        Dry { imbalance, ..self }
    }

    /// A copy of the log so far.
    pub fn log(&self) -> Log {
        self.log.borrow().clone()
    }

    /// Number of events logged so far.
    pub fn events(&self) -> usize {
        self.log.borrow().events.len()
    }

    /// Counts of ops and traffic so far.
    pub fn totals(&self) -> Totals {
        self.log.borrow().totals.clone()
    }

    /// The allocated blocks; see [`Allocator::live`].
    pub fn live(&self) -> Option<Vec<Live>> {
        self.memory.borrow().live()
    }

    /// Bytes by use at the peak.
    pub fn peak(&self) -> Peak {
        self.memory.borrow().peak()
    }

    /// Bytes that a block of `len` elements takes.
    pub fn block<T: Elem>(&self, len: usize) -> usize {
        self.scratch.block(len * size_of::<T>())
    }

    pub(super) fn take<T: Elem>(&self, rows: usize, cols: usize, what: Use) -> Tensor<Self, T> {
        let mem = DryMem::take(&self.memory, rows * cols, self.block::<T>(rows * cols), what);
        Tensor::from_mem(mem, rows, cols)
    }

    /// Logs an op, and allocates and frees its scratch. The op's result is already allocated, so that both count at the
    /// same time.
    pub(super) fn op(&self, op: Op, on: Operands) {
        self.log.borrow_mut().op(op, on.sizes());
        let blocks = op.scratch(on, &*self.scratch).into_iter();
        memory::hold(&self.memory, &blocks.map(|bytes| self.scratch.block(bytes)).collect::<Vec<usize>>());
    }

    /// An op over the elements of `x`.
    pub(super) fn over<T: Elem>(&self, op: Op, x: &Tensor<Self, T>) {
        self.op(op, Operands::Matrix(x.rows(), x.cols()));
    }

    /// An op with a gate over gate_up `[R, 2F]` and y or its gradient `[R, F]`, with a weight for each row.
    pub(super) fn gated_weighted(&self, op: Op, gate_up: &Act<Self>, weights: &Acc<Self>, y: &Act<Self>) {
        expect("weights", weights, y.rows(), 1);
        expect("[gate | up]", gate_up, y.rows(), 2 * y.cols());
        self.over(op, gate_up);
    }

    /// The product `[m, n, k]`; `depth`: the other operand's k.
    pub(super) fn product(&self, form: Form, [m, n, k]: [usize; 3], depth: usize) {
        assert_eq!(k, depth, "depth of the product {m} x {k} x {n}");
        self.log.borrow_mut().products.insert(Product { form, sizes: [m, n, k] });
        self.op(form.op(), Operands::Product([m, n, k]));
    }
}
