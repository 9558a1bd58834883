//! Collectives that move no data: results have the right shapes, and the log records the bytes.

use super::Dry;
use super::log::{Call, Log, Operation};
use super::memory::Memory;
use crate::backend::{Act, Backend, Collectives, Elem, Exchanged, Expected, Pending, Tensor, Ticket};
use crate::layout::mesh::GroupKind;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// A group whose other ranks need not exist.
pub struct DryGroup {
    /// The group's number: all ranks create their groups in the same order.
    number: usize,
    kind: GroupKind,
    members: Arc<[usize]>,
    /// Index of this rank among the members.
    place: usize,
    log: Rc<RefCell<Log>>,
    memory: Memory,
}

/// A call in flight, whose wait will be logged.
pub struct DryTicket {
    start: usize,
    log: Rc<RefCell<Log>>,
    /// Bytes of its buffers.
    bytes: usize,
    memory: Memory,
}

impl Ticket for DryTicket {
    fn wait(self) {
        self.log.borrow_mut().wait(self.start);
        self.memory.borrow_mut().arrive(self.bytes);
    }
}

impl DryGroup {
    pub(super) fn new(kind: GroupKind, members: &[usize], log: Rc<RefCell<Log>>, memory: Memory) -> Self {
        let number = log.borrow_mut().group();
        let rank = log.borrow().rank;
        let place = members.iter().position(|&member| member == rank);
        let place = place.unwrap_or_else(|| panic!("rank {rank} is not in {members:?}"));
        DryGroup { number, kind, members: members.into(), place, log, memory }
    }

    /// `held`: bytes of the buffers that exist only for this call.
    fn start(&self, what: Operation, bytes: usize, held: usize, post: usize) -> DryTicket {
        let (group, kind, members) = (self.number, self.kind, self.members.clone());
        let start = self.log.borrow_mut().start(Call { group, kind, members, what, bytes, post });
        self.memory.borrow_mut().depart(held);
        DryTicket { start, log: self.log.clone(), bytes: held, memory: self.memory.clone() }
    }

    /// Bytes of an input that exists only for the call. Gradients exist all through the step and are counted elsewhere.
    fn own(&self, input: usize) -> usize {
        if self.kind == GroupKind::Data { 0 } else { input }
    }

    /// Starts a collective; `bytes` is the size of the larger of its two matrices.
    fn collective(&self, what: Operation, bytes: usize, held: usize) -> DryTicket {
        let post = self.log.borrow_mut().post();
        self.start(what, bytes, held, post)
    }
}

impl<A: Elem> Collectives<Dry<A>> for DryGroup {
    fn rank(&self) -> usize {
        self.place
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    unsafe fn gather<T: Elem>(&self, _: &Dry<A>, from: &Tensor<Dry<A>, T>, to: &Tensor<Dry<A>, T>) -> DryTicket {
        assert_eq!(to.len(), from.len() * self.members.len(), "elements gathered from {} ranks", self.members.len());
        self.collective(Operation::AllGather, bytes(to), bytes(from) + bytes(to))
    }

    unsafe fn scatter<T: Elem>(&self, _: &Dry<A>, from: &Tensor<Dry<A>, T>, to: &Tensor<Dry<A>, T>) -> DryTicket {
        assert_eq!(from.len(), to.len() * self.members.len(), "elements scattered over {} ranks", self.members.len());
        self.collective(Operation::ReduceScatter, bytes(from), self.own(bytes(from)) + bytes(to))
    }

    fn all_reduce<T: Elem>(&self, b: &Dry<A>, x: Tensor<Dry<A>, T>) -> Pending<Dry<A>, T> {
        if self.members.len() == 1 {
            return Pending::ready(x);
        }
        let out = b.alloc(x.rows(), x.cols());
        Pending::in_flight(self.collective(Operation::AllReduce, bytes(&x), self.own(bytes(&x)) + bytes(&out)), x, out)
    }

    fn all_gather_within<T: Elem>(&self, _: &Dry<A>, x: Tensor<Dry<A>, T>) -> Pending<Dry<A>, T> {
        let ranks = self.members.len();
        assert_eq!(x.rows() % ranks, 0, "{} rows of {ranks} ranks", x.rows());
        if ranks == 1 {
            return Pending::ready(x);
        }
        // The weights are gathered in place.
        Pending::in_place(self.collective(Operation::AllGather, bytes(&x), 0), x)
    }

    fn all_to_all<T: Elem>(
        &self,
        _: &Dry<A>,
        x: Tensor<Dry<A>, T>,
        send: &[Range<usize>],
        to: Tensor<Dry<A>, T>,
        receive: &[Range<usize>],
    ) -> Pending<Dry<A>, T> {
        let others = |rows: &[Range<usize>]| {
            let others = rows.iter().enumerate().filter(|(rank, _)| *rank != self.place);
            others.map(|(_, rows)| rows.len()).sum::<usize>() * x.cols() * size_of::<T>()
        };
        let moved = others(send).max(others(receive));
        Pending::in_flight(self.collective(Operation::AllToAll, moved, bytes(&x) + bytes(&to)), x, to)
    }

    fn exchange(&self, b: &Dry<A>, send: Option<(Act<Dry<A>>, usize)>, recv: Option<Expected>) -> Exchanged<Dry<A>> {
        let post = self.log.borrow_mut().post();
        let received = recv.map(|Expected { rows, cols, from }| {
            let to: Tensor<Dry<A>, A> = b.alloc(rows, cols);
            Pending::in_place(self.start(Operation::Receive(self.members[from]), bytes(&to), bytes(&to), post), to)
        });
        let sent = send.map(|(x, to)| {
            let ticket = self.start(Operation::Send(self.members[to]), bytes(&x), bytes(&x), post);
            Pending::in_place(ticket, x)
        });
        Exchanged { sent, received }
    }
}

fn bytes<A: Elem, T: Elem>(x: &Tensor<Dry<A>, T>) -> usize {
    x.len() * size_of::<T>()
}
