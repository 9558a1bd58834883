//! What a stream does for a communicator: the operations of a call, or of a group of them, at once. Of sends and
//! receives it is the hardest there is: one ends only when the other side has met it.

use super::code::{INTERNAL_ERROR, fail};
use super::comm::{Comm, Inbox, Released, State};
use super::number::reduced;
use super::wire::{Kind, Message, What};
use std::sync::Arc;

/// An operation as one rank takes part in it.
#[derive(Clone, Copy)]
pub struct Op {
    pub what: What,
    /// Addresses of what is read and written; 0 where nothing is.
    pub send: u64,
    pub recv: u64,
    pub peer: usize,
    /// It never completes: a test wants it so.
    pub hangs: bool,
}

pub struct Plan {
    pub comm: Arc<Comm>,
    pub ticket: u64,
    pub ops: Vec<Op>,
}

impl Plan {
    /// On the stream's thread, which it holds until all operations have ended.
    pub fn run(self) {
        // Who is released has nothing to say: the communicator is no more.
        _ = self.go();
    }

    fn go(&self) -> Result<(), Released> {
        let comm = &*self.comm;
        comm.wait(|state| (state.done == self.ticket).then_some(()))?;
        if self.ops.iter().any(|op| op.hangs) {
            comm.wait(|_| None::<()>)?;
        }
        self.ops.iter().for_each(|op| self.hand_in(op));
        for op in self.ops.iter().filter(|op| op.what.is_collective()) {
            self.complete(op)?;
        }
        self.receive()?;
        self.be_received()?;
        comm.change(|state| state.done += 1);
        Ok(())
    }

    /// Sends this rank's part of an operation to who needs it.
    fn hand_in(&self, op: &Op) {
        let (comm, what) = (&self.comm, op.what);
        let others = (0..comm.size).filter(|rank| *rank != comm.rank);
        match what.kind {
            Kind::Recv => {}
            Kind::Send => comm.send(op.peer, Message::Part(what, self.input(op))),
            Kind::AllReduce | Kind::AllGather => {
                let input = self.input(op);
                others.for_each(|rank| comm.send(rank, Message::Part(what, input.clone())));
            }
            Kind::ReduceScatter => {
                let (input, n) = (self.input(op), what.count * what.number.bytes());
                others.for_each(|rank| comm.send(rank, Message::Part(what, input[rank * n..][..n].to_vec())));
            }
            Kind::Broadcast => {
                let input = if comm.rank == what.root { self.input(op) } else { Vec::new() };
                others.for_each(|rank| comm.send(rank, Message::Part(what, input.clone())));
            }
        }
    }

    fn input(&self, op: &Op) -> Vec<u8> {
        let n = op.what.counts(self.comm.size).0 * op.what.number.bytes();
        // SAFETY: the call saw that these bytes are of a block, which lives until its streams have passed.
        unsafe { std::slice::from_raw_parts(op.send as *const u8, n) }.to_vec()
    }

    fn output(&self, op: &Op, bytes: &[u8]) {
        let n = op.what.counts(self.comm.size).1 * op.what.number.bytes();
        assert_eq!(bytes.len(), n, "what an operation gets");
        // SAFETY: as in `input`.
        unsafe { (op.recv as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), n) };
    }

    /// Waits for the parts of all ranks.
    fn complete(&self, op: &Op) -> Result<(), Released> {
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
                return self.differ(what, rank, theirs);
            }
            parts.push(bytes);
        }
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        match what.kind {
            Kind::AllGather => self.output(op, &parts.concat()),
            Kind::Broadcast => self.output(op, &parts[what.root]),
            _ => self.output(op, &reduced(what.number, what.reduce, &views)),
        }
        Ok(())
    }

    /// What this rank hands in for itself.
    fn own(&self, op: &Op) -> Vec<u8> {
        let (rank, n) = (self.comm.rank, op.what.count * op.what.number.bytes());
        match op.what.kind {
            Kind::ReduceScatter => self.input(op)[rank * n..][..n].to_vec(),
            Kind::Broadcast if rank != op.what.root => Vec::new(),
            _ => self.input(op),
        }
    }

    /// Takes what comes from any peer, in each peer's order, and says so.
    fn receive(&self) -> Result<(), Released> {
        let comm = &self.comm;
        let mut left: Vec<&Op> = self.ops.iter().filter(|op| op.what.kind == Kind::Recv).collect();
        while !left.is_empty() {
            let (at, what, bytes) = comm.wait(|state| self.arrived(state, &left))?;
            let op = left.remove(at);
            if (what.number, what.count) != (op.what.number, op.what.count) {
                return self.differ(op.what, op.peer, what);
            }
            self.output(op, &bytes);
            comm.send(op.peer, Message::Received);
        }
        Ok(())
    }

    /// Something for the first receive that is left from some peer.
    fn arrived(&self, state: &mut State, left: &[&Op]) -> Option<(usize, What, Vec<u8>)> {
        left.iter().enumerate().find_map(|(at, op)| {
            let first = left[..at].iter().all(|earlier| earlier.peer != op.peer);
            let take = |inbox: &mut Inbox| inbox.sent.pop_front();
            let (what, bytes) = first.then(|| self.comm.next(state, op.peer, take))??;
            Some((at, what, bytes))
        })
    }

    /// Waits until the peers have received all that was sent.
    fn be_received(&self) -> Result<(), Released> {
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

    /// Ranks that do not do the same: that is told, and does not end.
    fn differ(&self, own: What, rank: usize, theirs: What) -> Result<(), Released> {
        let what = format!("rank {} is in {own:?}, rank {rank} in {theirs:?}", self.comm.rank);
        self.comm.set_error(fail(INTERNAL_ERROR, &what));
        self.comm.wait(|_| None)
    }
}
