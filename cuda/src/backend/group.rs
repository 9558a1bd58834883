//! Collectives by NCCL, on the stream of their kind of group (`GroupKind::lane`). A call waits for what was enqueued
//! before it, and waiting for its ticket orders later ops after it; everything between the two overlaps with it.

use super::Cuda;
use super::link::Link;
use super::pending::PendingCalls;
use super::rank::Rank;
use crate::device::{Event, Memory, Progress, Stream};
use crate::nccl::{Buffers, Communicator, Message, Type, UniqueId};
use cudarc::driver::DriverError;
use engine::backend::{
    Act, Backend, Collectives, Detail, Elem, Exchanged, Expected, Label, Pending, Tensor, Ticket, Track,
};
use engine::layout::mesh::GroupKind;
use engine::mpi::Comm;
use half::bf16;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of the calls that make connections: enough for NCCL to choose the protocol of large calls.
const WARM_UP: usize = 1 << 20;

/// The ranks of one communicator.
pub struct NcclGroup {
    kind: GroupKind,
    /// This rank within the group.
    rank: usize,
    size: usize,
    /// None for a single rank.
    link: Option<Rc<Link>>,
}

/// A collective under way. The compute stream waits for it before it uses the result.
pub struct NcclTicket {
    rank: Rc<Rank>,
    kind: GroupKind,
    /// None if the call failed, which is recorded.
    done: Option<Rc<Event>>,
}

impl Ticket for NcclTicket {
    fn wait(self) {
        let Some(done) = &self.done else { return };
        let (device, track) = (&self.rank.device, Track::Wait(self.kind));
        let wait = || device.stream().wait(done);
        self.rank.must(device.recorded(Detail::Parts, track, || Label::Wait, device.stream(), wait));
    }
}

impl NcclGroup {
    pub(super) fn new(rank: &Rc<Rank>, kind: GroupKind, members: &[usize]) -> Self {
        let Some(world) = &rank.world else {
            assert_eq!(members.len(), 1, "ranks in a group of a single rank");
            return NcclGroup { kind, rank: 0, size: 1, link: None };
        };
        let group_rank = members.iter().position(|&member| member == world.rank());
        let group_rank = group_rank.unwrap_or_else(|| panic!("rank {} is not in {members:?}", world.rank()));
        let comm = world.split(members[0], group_rank);
        let size = members.len();
        let link = (size > 1).then(|| rank.join(kind, members, &comm)).flatten();
        NcclGroup { kind, rank: group_rank, size, link }
    }

    /// Starts a call that reads `x` and writes `out`.
    fn start<T: Elem>(
        &self,
        b: &Cuda,
        what: &'static str,
        x: &Tensor<Cuda, T>,
        out: &Tensor<Cuda, T>,
        call: impl FnOnce(&Communicator, Buffers, &Stream) -> Result<(), String>,
    ) -> NcclTicket {
        let len = x.len().min(out.len());
        let buffers = Buffers { from: x.mem.at(), to: out.mem.at(), len, of: type_of::<T>() };
        let bytes = x.len().max(out.len()) * size_of::<T>();
        let done = self.enqueue(b, what, bytes, |communicator, stream| call(communicator, buffers, stream));
        self.ticket(b, done)
    }

    fn ticket(&self, b: &Cuda, done: Option<Rc<Event>>) -> NcclTicket {
        NcclTicket { rank: b.0.clone(), kind: self.kind, done }
    }

    /// Enqueues a call after everything enqueued so far; None if that failed, which is recorded.
    fn enqueue(
        &self,
        b: &Cuda,
        what: &'static str,
        bytes: usize,
        call: impl FnOnce(&Communicator, &Stream) -> Result<(), String>,
    ) -> Option<Rc<Event>> {
        let link = self.link.as_ref()?;
        let started = link.enqueue(&b.0.device, what, bytes, call);
        started.map_err(|why| b.0.note(format!("{}: {what} of {bytes} bytes: {why}", link.pending.name))).ok()
    }
}

impl Rank {
    /// Creates a communicator of these ranks, whose MPI communicator is `comm`, and runs a few calls on it: so it is
    /// known to work, and has allocated its buffers before the arena takes the rest of the memory. (With
    /// NCCL_RUNTIME_CONNECT = 1 NCCL may still connect some ranks when it first needs to.)
    fn join(self: &Rc<Self>, kind: GroupKind, members: &[usize], comm: &Comm) -> Option<Rc<Link>> {
        let name = format!("the {} group of ranks {members:?}", kind.name());
        // NCCL waits here until all ranks of the group have come.
        let _connecting = self.recorder.work(&format!("NCCL: {}", kind.name()));
        match self.try_join(kind, &name, members[0], comm) {
            Ok(link) => {
                self.add_link(&link);
                Some(link)
            }
            Err(why) => {
                self.lost(format!("{name} was not connected by NCCL: {why}"));
                None
            }
        }
    }

    fn try_join(&self, kind: GroupKind, name: &str, first: usize, comm: &Comm) -> Result<Rc<Link>, String> {
        let nccl = self.options.nccl.as_ref().ok_or("there is no NCCL")?;
        let (rank, size) = (comm.rank(), comm.size());
        let made = if rank == 0 { nccl.unique_id().map(|id| id.0.to_vec()) } else { Ok(Vec::new()) };
        // An empty id informs the other ranks that there is none.
        let id = comm.broadcast_bytes(made.clone().unwrap_or_default());
        made?;
        let id: [u8; 128] = id.try_into().map_err(|_| format!("rank {first} has no unique id"))?;
        let failed = |error: DriverError| self.device.fault(error);
        let stream = self.stream_of(kind).map_err(failed)?;
        let completed = self.device.pinned().take(size_of::<u32>()).and_then(Progress::new).map_err(failed)?;
        let recorder = self.recorder.clone();
        let communicator = Communicator::join(nccl, UniqueId(id), rank, size, kind.ctas(&self.options.ctas))?;
        let link = Link::new(kind, communicator, stream, PendingCalls::new(name.into(), kind, completed), recorder);
        self.warm_up(&link, rank, size).inspect_err(|_| link.mark_broken())?;
        Ok(Rc::new(link))
    }

    /// Runs one of each call that this kind of group makes: NCCL connects ranks, and allocates memory for that, when it
    /// first uses an algorithm.
    fn warm_up(&self, link: &Link, rank: usize, size: usize) -> Result<(), String> {
        let space = Memory::of(self.device.clone(), 2 * WARM_UP).map_err(|error| error.to_string())?;
        let (from, to, all) = (space.at(), space.at() + WARM_UP as u64, WARM_UP / size_of::<f32>());
        let buffers = |len| Buffers { from, to, len, of: Type::F32 };
        // SAFETY: nothing else uses the space, which lives until the calls have completed.
        let done = link.enqueue(&self.device, "a first call", WARM_UP, |communicator, stream| unsafe {
            communicator.all_reduce(buffers(1), stream)?;
            communicator.all_reduce(buffers(all), stream)?;
            communicator.all_gather(buffers(all / size), stream)?;
            communicator.reduce_scatter(buffers(all / size), stream)?;
            match link.kind {
                GroupKind::Activations | GroupKind::Gradients => {
                    let message = |at, peer| [Message { at, len: 1, of: Type::Bf16, peer: peer % size }];
                    communicator.exchange(&message(from, rank + 1), &message(to, rank + size - 1), stream)?;
                    communicator.exchange(&message(from, rank + size - 1), &message(to, rank + 1), stream)
                }
                GroupKind::Experts => {
                    let (len, of) = (all / size, Type::F32);
                    let part = |at: u64, peer: usize| at + (peer * len * size_of::<f32>()) as u64;
                    let others = || (0..size).filter(|&peer| peer != rank);
                    let messages = |at| others().map(|peer| Message { at: part(at, peer), len, of, peer }).collect();
                    let [sends, receives]: [Vec<Message>; 2] = [messages(from), messages(to)];
                    communicator.exchange(&sends, &receives, stream)
                }
                _ => Ok(()),
            }
        })?;
        done.wait().map_err(|error| self.device.fault(error))?;
        link.error()
    }
}

fn type_of<T: Elem>() -> Type {
    match T::NAME {
        "F32" => Type::F32,
        "BF16" => Type::Bf16,
        "U32" => Type::U32,
        other => panic!("there is no NCCL type for {other}"),
    }
}

impl Collectives<Cuda> for NcclGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    unsafe fn gather<T: Elem>(&self, b: &Cuda, from: &Tensor<Cuda, T>, to: &Tensor<Cuda, T>) -> NcclTicket {
        assert_eq!(to.len(), from.len() * self.size, "elements gathered from {} ranks", self.size);
        // SAFETY (this call and those below): the blocks have the given elements, and a `Pending` owns them until the
        // compute stream has waited for the call.
        self.start(b, "an all-gather", from, to, |c, buffers, stream| unsafe { c.all_gather(buffers, stream) })
    }

    unsafe fn scatter<T: Elem>(&self, b: &Cuda, from: &Tensor<Cuda, T>, to: &Tensor<Cuda, T>) -> NcclTicket {
        assert_eq!(from.len(), to.len() * self.size, "elements scattered over {} ranks", self.size);
        // SAFETY: as above.
        self.start(b, "a reduce-scatter", from, to, |c, buffers, stream| unsafe { c.reduce_scatter(buffers, stream) })
    }

    fn all_reduce<T: Elem>(&self, b: &Cuda, x: Tensor<Cuda, T>) -> Pending<Cuda, T> {
        if self.size == 1 {
            return Pending::ready(x);
        }
        let out = b.alloc(x.rows(), x.cols());
        // SAFETY: as above.
        let ticket =
            self.start(b, "an all-reduce", &x, &out, |c, buffers, stream| unsafe { c.all_reduce(buffers, stream) });
        Pending::in_flight(ticket, x, out)
    }

    fn all_gather_within<T: Elem>(&self, b: &Cuda, x: Tensor<Cuda, T>) -> Pending<Cuda, T> {
        if self.size == 1 {
            return Pending::ready(x);
        }
        assert_eq!(x.rows() % self.size, 0, "{} rows over {} ranks", x.rows(), self.size);
        let (len, to) = (x.len() / self.size, x.mem.at());
        let from = to + (self.rank * len * size_of::<T>()) as u64;
        let buffers = Buffers { from, to, len, of: type_of::<T>() };
        // SAFETY: as above; NCCL gathers in place, since this rank's elements already are at their offset.
        let call = |c: &Communicator, stream: &Stream| unsafe { c.all_gather(buffers, stream) };
        let done = self.enqueue(b, "an all-gather", x.len() * size_of::<T>(), call);
        Pending::in_place(self.ticket(b, done), x)
    }

    /// This rank's own rows are copied on the compute stream, beside the call.
    fn all_to_all<T: Elem>(
        &self,
        b: &Cuda,
        x: Tensor<Cuda, T>,
        send: &[Range<usize>],
        to: Tensor<Cuda, T>,
        receive: &[Range<usize>],
    ) -> Pending<Cuda, T> {
        assert_eq!((send.len(), receive.len()), (self.size, self.size), "ranges of rows");
        assert_eq!((x.cols(), send[self.rank].len()), (to.cols(), receive[self.rank].len()), "rows of this rank");
        let row = x.cols() * size_of::<T>();
        let part = |of: &Tensor<Cuda, T>, rows: &Range<usize>| {
            assert!(rows.end <= of.rows(), "rows {rows:?} of {:?}", of.shape());
            of.mem.at() + (rows.start * row) as u64
        };
        let messages = |of: &Tensor<Cuda, T>, rows: &[Range<usize>]| -> Vec<Message> {
            let others = rows.iter().enumerate().filter(|(peer, rows)| *peer != self.rank && !rows.is_empty());
            let message = |(peer, rows): (usize, &Range<usize>)| Message {
                at: part(of, rows),
                len: rows.len() * of.cols(),
                of: type_of::<T>(),
                peer,
            };
            others.map(message).collect()
        };
        let (sends, receives) = (messages(&x, send), messages(&to, receive));
        let moved = |of: &[Message]| of.iter().map(|m| m.len).sum::<usize>() * size_of::<T>();
        let bytes = moved(&sends).max(moved(&receives));
        // SAFETY: as above; the ranges are rows of the matrices, and are apart.
        let call = |c: &Communicator, stream: &Stream| unsafe { c.exchange(&sends, &receives, stream) };
        let done = self.enqueue(b, "an all-to-all", bytes, call);
        let [from, into] = [part(&x, &send[self.rank]), part(&to, &receive[self.rank])];
        if !send[self.rank].is_empty() {
            b.0.must(b.0.device.copy_within(from, into, send[self.rank].len() * row));
        }
        Pending::in_flight(self.ticket(b, done), x, to)
    }

    fn exchange(&self, b: &Cuda, send: Option<(Act<Cuda>, usize)>, recv: Option<Expected>) -> Exchanged<Cuda> {
        let coming = recv.map(|Expected { rows, cols, from }| (b.alloc::<bf16>(rows, cols), from));
        let message =
            |(x, peer): &(Act<Cuda>, usize)| Message { at: x.mem.at(), len: x.len(), of: Type::Bf16, peer: *peer };
        let (sending, receiving) = (send.as_ref().map(message), coming.as_ref().map(message));
        let bytes = [sending, receiving].into_iter().flatten().map(|m| 2 * m.len).max().unwrap_or_default();
        // SAFETY: as above.
        let done = self.enqueue(b, "an exchange", bytes, |c, stream| unsafe {
            c.exchange(sending.as_slice(), receiving.as_slice(), stream)
        });
        let ticket = || self.ticket(b, done.clone());
        Exchanged {
            received: coming.map(|(x, _)| Pending::in_place(ticket(), x)),
            sent: send.map(|(x, _)| Pending::in_place(ticket(), x)),
        }
    }
}
