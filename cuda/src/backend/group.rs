//! Collectives by NCCL, along the stream of their kind of group (`GroupKind::lane`): a call waits for what was enqueued before it, what
//! waits for the call goes on after it, and everything between the two overlaps.

use super::Cuda;
use super::flights::Flights;
use super::rank::Rank;
use crate::device::{Device, Event, Knows, Memory, Progress, Stream};
use crate::nccl::{Communicator, Flow, Message, Type, UniqueId};
use cudarc::driver::DriverError;
use engine::backend::{
    Act, Backend, Collectives, Detail, Elem, Exchanged, Expected, Label, Pending, Tensor, Ticket, Track,
};
use engine::layout::mesh::GroupKind;
use engine::mpi::Comm;
use half::bf16;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of calls that only make connections: enough that they are done as large ones are.
const WARM: usize = 1 << 20;

/// The ranks of one communicator.
pub struct NcclGroup {
    kind: GroupKind,
    /// Place of this rank among them.
    place: usize,
    size: usize,
    /// None for a rank alone.
    link: Option<Rc<Link>>,
}

/// This rank's end of a communicator, and what is under way on it.
pub(super) struct Link {
    kind: GroupKind,
    communicator: RefCell<Option<Communicator>>,
    stream: Rc<Stream>,
    /// To be told of where one does not end.
    pub flights: Arc<Flights>,
    /// Whether a rank has failed since: then nobody can be waited for.
    broken: Cell<bool>,
}

/// Where the compute stream takes up what a collective brought.
pub struct NcclTicket {
    rank: Rc<Rank>,
    kind: GroupKind,
    /// None where the call failed, which is noted.
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
            assert_eq!(members.len(), 1, "ranks in a group of a rank alone");
            return NcclGroup { kind, place: 0, size: 1, link: None };
        };
        let place = members.iter().position(|&member| member == world.rank());
        let place = place.unwrap_or_else(|| panic!("rank {} is not in {members:?}", world.rank()));
        let comm = world.split(members[0], place);
        let size = members.len();
        let link = (size > 1).then(|| rank.join(kind, members, &comm)).flatten();
        NcclGroup { kind, place, size, link }
    }

    /// Starts a call that reads `x` and writes `out`.
    fn start<T: Elem>(
        &self,
        b: &Cuda,
        what: &'static str,
        x: &Tensor<Cuda, T>,
        out: &Tensor<Cuda, T>,
        call: impl FnOnce(&Communicator, Flow, &Stream) -> Result<(), String>,
    ) -> NcclTicket {
        let len = x.len().min(out.len());
        let flow = Flow { from: x.mem.at(), to: out.mem.at(), len, of: type_of::<T>() };
        let bytes = x.len().max(out.len()) * size_of::<T>();
        let done = self.enqueue(b, what, bytes, |communicator, stream| call(communicator, flow, stream));
        self.ticket(b, done)
    }

    fn ticket(&self, b: &Cuda, done: Option<Rc<Event>>) -> NcclTicket {
        NcclTicket { rank: b.0.clone(), kind: self.kind, done }
    }

    /// A call after all that was enqueued; the point at which it is done.
    fn enqueue(
        &self,
        b: &Cuda,
        what: &'static str,
        bytes: usize,
        call: impl FnOnce(&Communicator, &Stream) -> Result<(), String>,
    ) -> Option<Rc<Event>> {
        let link = self.link.as_ref()?;
        let started = link.enqueue(&b.0.device, what, bytes, call);
        started.map_err(|why| b.0.note(format!("{}: {what} of {bytes} bytes: {why}", link.flights.name))).ok()
    }
}

impl Link {
    fn enqueue(
        &self,
        device: &Device,
        what: &'static str,
        bytes: usize,
        call: impl FnOnce(&Communicator, &Stream) -> Result<(), String>,
    ) -> Result<Rc<Event>, String> {
        let words = |error: DriverError| device.fault(error);
        let ready = device.events().record(device.stream(), Knows::Order).map_err(words)?;
        self.stream.wait(&ready).map_err(words)?;
        let communicator = self.communicator.borrow();
        let communicator = communicator.as_ref().expect("a link has its communicator until it is dropped");
        let _inside = self.flights.enter(what, bytes);
        let label = || Label::Op(format!("{what} of {bytes} bytes"));
        let track = Track::Group(self.kind);
        device.recorded(Detail::Ops, track, label, &self.stream, || call(communicator, &self.stream))?;
        let done = Rc::new(device.events().record(&self.stream, Knows::Order).map_err(words)?);
        self.flights.started(&self.stream, what, bytes).map_err(words)?;
        Ok(done)
    }

    /// What NCCL has seen go wrong.
    pub fn error(&self) -> Result<(), String> {
        self.communicator.borrow().as_ref().map_or(Ok(()), Communicator::error)
    }

    pub fn break_off(&self) {
        self.broken.set(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(communicator) = self.communicator.take() else { return };
        if !self.broken.get() && !std::thread::panicking() {
            // All ranks come here at the end of a run; what does not end well now has nothing left to spoil.
            _ = communicator.finish();
        }
    }
}

impl Rank {
    /// Makes a communicator of these ranks, `comm` being theirs, and sends something around it, so that it is
    /// known to work, and has taken what it takes at once, before the slab does. NCCL may make connections of its own when it first needs them.
    fn join(self: &Rc<Self>, kind: GroupKind, members: &[usize], comm: &Comm) -> Option<Rc<Link>> {
        let name = name(kind, members);
        let _deadline = self.deadline(comm.rank(), &format!("{name} does not come together"));
        let joined = self.try_join(kind, members, comm);
        match joined {
            Ok(link) => {
                self.add_link(&link);
                Some(link)
            }
            Err(why) => {
                self.lost(format!("{name} does not come together: {why}"));
                None
            }
        }
    }

    fn try_join(&self, kind: GroupKind, members: &[usize], comm: &Comm) -> Result<Rc<Link>, String> {
        let nccl = self.outlook.nccl.as_ref().ok_or("there is no NCCL")?;
        let (place, size) = (comm.rank(), comm.size());
        let made = if place == 0 { nccl.unique_id().map(|id| id.0.to_vec()) } else { Ok(Vec::new()) };
        // The others are told, too, where there is none.
        let id = comm.broadcast_bytes(made.clone().unwrap_or_default());
        made?;
        let id: [u8; 128] = id.try_into().map_err(|_| format!("rank {} has no unique id", members[0]))?;
        let words = |error: DriverError| self.device.fault(error);
        let stream = self.stream_of(kind).map_err(words)?;
        let passed = self.device.pins().take(size_of::<u32>()).and_then(Progress::new).map_err(words)?;
        let communicator = Communicator::join(nccl, UniqueId(id), place, size)?;
        let link = Link {
            kind,
            communicator: RefCell::new(Some(communicator)),
            stream,
            flights: Arc::new(Flights::new(name(kind, members), passed)),
            broken: Cell::new(false),
        };
        self.warm_up(&link, place, size).inspect_err(|_| link.break_off())?;
        Ok(Rc::new(link))
    }

    /// One of each call that this kind of group makes: NCCL connects ranks for one way of doing things when it first
    /// takes it, and takes memory for that.
    fn warm_up(&self, link: &Link, place: usize, size: usize) -> Result<(), String> {
        let words = |error: DriverError| self.device.fault(error);
        let space = Memory::of(self.device.clone(), 2 * WARM).map_err(|error| error.to_string())?;
        let (from, to, all) = (space.at(), space.at() + WARM as u64, WARM / size_of::<f32>());
        let flow = |len| Flow { from, to, len, of: Type::F32 };
        // SAFETY: nothing else uses the space, which lives until the calls are done.
        let done = link.enqueue(&self.device, "a first call", WARM, |communicator, stream| unsafe {
            communicator.all_reduce(flow(1), stream)?;
            communicator.all_reduce(flow(all), stream)?;
            communicator.all_gather(flow(all / size), stream)?;
            communicator.reduce_scatter(flow(all / size), stream)?;
            if !matches!(link.kind, GroupKind::Activations | GroupKind::Gradients) {
                return Ok(());
            }
            let message = |at, peer| Some(Message { at, len: 1, of: Type::Bf16, peer: peer % size });
            communicator.exchange(message(from, place + 1), message(to, place + size - 1), stream)?;
            communicator.exchange(message(from, place + size - 1), message(to, place + 1), stream)
        })?;
        done.wait().map_err(words)?;
        link.error()
    }
}

fn name(kind: GroupKind, members: &[usize]) -> String {
    format!("the {} group of ranks {members:?}", kind.name())
}

fn type_of<T: Elem>() -> Type {
    match T::NAME {
        "F32" => Type::F32,
        "BF16" => Type::Bf16,
        "U32" => Type::U32,
        other => panic!("NCCL is not told of {other}"),
    }
}

impl Collectives<Cuda> for NcclGroup {
    fn rank(&self) -> usize {
        self.place
    }

    fn size(&self) -> usize {
        self.size
    }

    unsafe fn gather<T: Elem>(&self, b: &Cuda, from: &Tensor<Cuda, T>, to: &Tensor<Cuda, T>) -> NcclTicket {
        assert_eq!(to.len(), from.len() * self.size, "elements gathered from {} ranks", self.size);
        // SAFETY (this call and those below): the blocks have the elements given, and are owned by a `Pending` until
        // the compute stream has waited for the call.
        self.start(b, "an all-gather", from, to, |c, flow, stream| unsafe { c.all_gather(flow, stream) })
    }

    unsafe fn scatter<T: Elem>(&self, b: &Cuda, from: &Tensor<Cuda, T>, to: &Tensor<Cuda, T>) -> NcclTicket {
        assert_eq!(from.len(), to.len() * self.size, "elements scattered over {} ranks", self.size);
        // SAFETY: as above.
        self.start(b, "a reduce-scatter", from, to, |c, flow, stream| unsafe { c.reduce_scatter(flow, stream) })
    }

    fn all_reduce<T: Elem>(&self, b: &Cuda, x: Tensor<Cuda, T>) -> Pending<Cuda, T> {
        if self.size == 1 {
            return Pending::ready(x);
        }
        let out = b.alloc(x.rows(), x.cols());
        // SAFETY: as above.
        let ticket = self.start(b, "an all-reduce", &x, &out, |c, flow, stream| unsafe { c.all_reduce(flow, stream) });
        Pending::in_flight(ticket, x, out)
    }

    fn all_gather_within<T: Elem>(&self, b: &Cuda, x: Tensor<Cuda, T>) -> Pending<Cuda, T> {
        if self.size == 1 {
            return Pending::ready(x);
        }
        assert_eq!(x.rows() % self.size, 0, "{} rows of {} ranks", x.rows(), self.size);
        let (len, to) = (x.len() / self.size, x.mem.at());
        let from = to + (self.place * len * size_of::<T>()) as u64;
        let flow = Flow { from, to, len, of: type_of::<T>() };
        // SAFETY: as above; NCCL gathers in place where this rank's elements are where they will be.
        let call = |c: &Communicator, stream: &Stream| unsafe { c.all_gather(flow, stream) };
        let done = self.enqueue(b, "an all-gather", x.len() * size_of::<T>(), call);
        Pending::in_place(self.ticket(b, done), x)
    }

    fn exchange(&self, b: &Cuda, send: Option<(Act<Cuda>, usize)>, recv: Option<Expected>) -> Exchanged<Cuda> {
        let coming = recv.map(|Expected { rows, cols, from }| (b.alloc::<bf16>(rows, cols), from));
        let message =
            |(x, peer): &(Act<Cuda>, usize)| Message { at: x.mem.at(), len: x.len(), of: Type::Bf16, peer: *peer };
        let (sending, receiving) = (send.as_ref().map(message), coming.as_ref().map(message));
        let bytes = [sending, receiving].into_iter().flatten().map(|m| 2 * m.len).max().unwrap_or_default();
        // SAFETY: as above.
        let done = self.enqueue(b, "an exchange", bytes, |c, stream| unsafe { c.exchange(sending, receiving, stream) });
        let ticket = || self.ticket(b, done.clone());
        Exchanged {
            received: coming.map(|(x, _)| Pending::in_place(ticket(), x)),
            sent: send.map(|(x, _)| Pending::in_place(ticket(), x)),
        }
    }
}
