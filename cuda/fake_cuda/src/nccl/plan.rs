//! The work that a stream does for a communicator: the operations of one call or of one group. Sends and receives have
//! the strictest semantics: each completes only when its counterpart has.

use super::code::{INTERNAL_ERROR, fail};
use super::comm::{Aborted, Comm, Inbox, State};
use super::data_type::reduced;
use super::wire::{Kind, Message, Signature};
use std::sync::Arc;

/// One rank's part in an operation.
#[derive(Clone, Copy)]
pub struct Op {
    pub what: Signature,
    /// Addresses that are read and written; 0 for none.
    pub send: u64,
    pub recv: u64,
    pub peer: usize,
    /// The operation never completes, at a test's request.
    pub hangs: bool,
}

pub struct Plan {
    pub comm: Arc<Comm>,
    pub ticket: u64,
    pub ops: Vec<Op>,
}

impl Plan {
    /// Runs on the stream's thread, which is blocked until all operations have completed.
    pub fn run(self) {
        // After an abort there is nothing to report.
        _ = self.go();
    }

    fn go(&self) -> Result<(), Aborted> {
        let comm = &*self.comm;
        comm.wait(|state| (state.done == self.ticket).then_some(()))?;
        if self.ops.iter().any(|op| op.hangs) {
            comm.wait(|_| None::<()>)?;
        }
        self.ops.iter().for_each(|op| self.send_input(op));
        for op in self.ops.iter().filter(|op| op.what.is_collective()) {
            self.complete(op)?;
        }
        self.receive()?;
        self.wait_for_receivers()?;
        comm.change(|state| state.done += 1);
        Ok(())
    }

    /// Sends this rank's input of an operation to the ranks that need it.
    fn send_input(&self, op: &Op) {
        let (comm, what) = (&self.comm, op.what);
        let others = (0..comm.size).filter(|rank| *rank != comm.rank);
        match what.kind {
            Kind::Recv => {}
            Kind::Send => comm.send(op.peer, Message::Data(what, self.input(op))),
            Kind::AllReduce | Kind::AllGather => {
                let input = self.input(op);
                others.for_each(|rank| comm.send(rank, Message::Data(what, input.clone())));
            }
            Kind::ReduceScatter => {
                let (input, n) = (self.input(op), what.count * what.data_type.bytes());
                others.for_each(|rank| comm.send(rank, Message::Data(what, input[rank * n..][..n].to_vec())));
            }
            Kind::Broadcast => {
                let input = if comm.rank == what.root { self.input(op) } else { Vec::new() };
                others.for_each(|rank| comm.send(rank, Message::Data(what, input.clone())));
            }
        }
    }

    fn input(&self, op: &Op) -> Vec<u8> {
        let n = op.what.counts(self.comm.size).0 * op.what.data_type.bytes();
        // SAFETY: the call has checked that the bytes lie in a block, which is live until its streams have completed.
        unsafe { std::slice::from_raw_parts(op.send as *const u8, n) }.to_vec()
    }

    fn output(&self, op: &Op, bytes: &[u8]) {
        let n = op.what.counts(self.comm.size).1 * op.what.data_type.bytes();
        assert_eq!(bytes.len(), n, "bytes of an operation's output");
        // SAFETY: as in `input`.
        unsafe { (op.recv as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), n) };
    }

    /// Waits for the inputs of all ranks and computes the output.
    fn complete(&self, op: &Op) -> Result<(), Aborted> {
        let (comm, what) = (&self.comm, op.what);
        let own = self.own(op);
        let mut parts = Vec::with_capacity(comm.size);
        for rank in 0..comm.size {
            if rank == comm.rank {
                parts.push(own.clone());
                continue;
            }
            let (theirs, bytes) = comm.wait(|state| comm.next(state, rank, |inbox| inbox.collectives.pop_front()))?;
            if theirs != what {
                return self.mismatch(what, rank, theirs);
            }
            parts.push(bytes);
        }
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        match what.kind {
            Kind::AllGather => self.output(op, &parts.concat()),
            Kind::Broadcast => self.output(op, &parts[what.root]),
            _ => self.output(op, &reduced(what.data_type, what.reduce, &views)),
        }
        Ok(())
    }

    /// This rank's own contribution.
    fn own(&self, op: &Op) -> Vec<u8> {
        let (rank, n) = (self.comm.rank, op.what.count * op.what.data_type.bytes());
        match op.what.kind {
            Kind::ReduceScatter => self.input(op)[rank * n..][..n].to_vec(),
            Kind::Broadcast if rank != op.what.root => Vec::new(),
            _ => self.input(op),
        }
    }

    /// Receives from any peer, in the order of each peer's sends, and confirms.
    fn receive(&self) -> Result<(), Aborted> {
        let comm = &self.comm;
        let mut left: Vec<&Op> = self.ops.iter().filter(|op| op.what.kind == Kind::Recv).collect();
        while !left.is_empty() {
            let (at, what, bytes) = comm.wait(|state| self.arrived(state, &left))?;
            let op = left.remove(at);
            if (what.data_type, what.count) != (op.what.data_type, op.what.count) {
                return self.mismatch(op.what, op.peer, what);
            }
            self.output(op, &bytes);
            comm.send(op.peer, Message::Received);
        }
        Ok(())
    }

    /// A message for the first pending receive of some peer.
    fn arrived(&self, state: &mut State, left: &[&Op]) -> Option<(usize, Signature, Vec<u8>)> {
        left.iter().enumerate().find_map(|(at, op)| {
            let first = left[..at].iter().all(|earlier| earlier.peer != op.peer);
            let take = |inbox: &mut Inbox| inbox.sent.pop_front();
            let (what, bytes) = first.then(|| self.comm.next(state, op.peer, take))??;
            Some((at, what, bytes))
        })
    }

    /// Waits until the peers have confirmed all sends.
    fn wait_for_receivers(&self) -> Result<(), Aborted> {
        let comm = &self.comm;
        let take = |inbox: &mut Inbox| {
            inbox.received = inbox.received.checked_sub(1)?;
            Some(())
        };
        for op in self.ops.iter().filter(|op| op.what.kind == Kind::Send) {
            comm.wait(|state| comm.next(state, op.peer, take))?;
        }
        Ok(())
    }

    /// Reports ranks that call different operations; the operation never completes.
    fn mismatch(&self, own: Signature, rank: usize, theirs: Signature) -> Result<(), Aborted> {
        let what = format!("rank {} is in {own:?}, rank {rank} in {theirs:?}", self.comm.rank);
        self.comm.set_error(fail(INTERNAL_ERROR, &what));
        self.comm.wait(|_| None)
    }
}
