//! Collectives of the CPU backend: non-blocking MPI calls on blocks of the pool.
//!
//! Open MPI moves data only inside MPI calls, so every op calls [`Progress::poke`].

use super::spans::Spans;
use super::{Cpu, Float};
use crate::backend::{
    Act, Backend, Collectives, Detail, Elem, Exchanged, Expected, Label, Pending, Tensor, Ticket, Track,
};
use crate::flight::{Channel, Recorder};
use crate::layout::mesh::GroupKind;
use crate::mpi::Comm;
use half::bf16;
use mpi::ffi;
use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::c_void;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// The requests that have not been waited for.
#[derive(Clone, Default)]
pub struct Progress(Rc<RefCell<Vec<Weak<Request>>>>);

struct Request(Cell<ffi::MPI_Request>);

impl Progress {
    /// Tests the requests in flight, so that MPI moves their data.
    pub fn poke(&self) {
        if self.0.borrow().is_empty() {
            return;
        }
        self.0.borrow_mut().retain(|request| request.upgrade().is_some_and(|request| !request.test()));
    }

    fn track(&self, request: ffi::MPI_Request) -> Rc<Request> {
        let request = Rc::new(Request(Cell::new(request)));
        self.0.borrow_mut().push(Rc::downgrade(&request));
        request
    }
}

impl Request {
    fn test(&self) -> bool {
        let (mut request, mut done) = (self.0.get(), 0);
        // SAFETY: the request is live or null (MPI allows both); main thread only, as `Cell` is not `Sync`.
        unsafe { ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        self.0.set(request);
        done != 0
    }

    fn wait(&self) {
        let mut request = self.0.get();
        // SAFETY: as in `test`; the buffers are owned by the `Pending` that holds the ticket of this request.
        unsafe { ffi::MPI_Wait(&mut request, ffi::RSMPI_STATUS_IGNORE) };
        self.0.set(request);
    }
}

/// Requests that were started together; MPI sets a request to null once it is done.
pub struct MpiTicket {
    requests: Vec<Rc<Request>>,
    kind: GroupKind,
    call: Call,
    watch: Watch,
}

/// A call among those of its group.
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    /// The other rank of a message, by its number in the run.
    peer: Option<usize>,
}

/// The observers of a rank's calls: MPI's progress, the trace of a step, and the flight recorder.
#[derive(Clone)]
pub(super) struct Watch {
    pub progress: Progress,
    pub spans: Spans,
    pub recorder: Arc<Recorder>,
}

impl Ticket for MpiTicket {
    fn wait(self) {
        let MpiTicket { requests, kind, call: Call { number, peer }, watch: Watch { spans, recorder, .. } } = self;
        let _waiting = recorder.wait(Channel::Group(kind), number, peer);
        spans.around(Detail::Parts, Track::Wait(kind), || Label::Wait, || requests.iter().for_each(|r| r.wait()));
    }
}

/// A communicator, and the list that tracks its requests.
pub struct MpiGroup {
    /// `None` in a group of one rank.
    comm: Option<Comm>,
    kind: GroupKind,
    /// The ranks of the group, by their numbers in the run.
    members: Vec<usize>,
    watch: Watch,
    bf16_sum: OnceCell<Bf16Sum>,
}

impl MpiGroup {
    /// The ranks `members` of `world`. A collective call: all ranks of `world` make it together.
    pub(super) fn new(world: Option<&Comm>, kind: GroupKind, members: &[usize], watch: Watch) -> Self {
        assert!(world.is_some() || members.len() == 1, "{} members of a group without a communicator", members.len());
        let comm = world.map(|world| {
            let mine = members.iter().position(|&rank| rank == world.rank());
            world.split(members[0], mine.unwrap_or_else(|| panic!("rank {} is not in {members:?}", world.rank())))
        });
        MpiGroup { comm, kind, members: members.to_vec(), watch, bf16_sum: OnceCell::new() }
    }

    fn ranks(&self) -> usize {
        self.comm.as_ref().map_or(1, Comm::size)
    }

    /// The communicator, which only a group of several ranks has.
    fn raw(&self) -> ffi::MPI_Comm {
        self.comm.as_ref().expect("a group of one rank makes no MPI call").raw()
    }

    /// MPI's type and operation for a sum of these elements.
    fn sum<T: Elem>(&self) -> (ffi::MPI_Datatype, ffi::MPI_Op) {
        // SAFETY: reads constants of the MPI library.
        unsafe {
            match T::NAME {
                "F32" => (ffi::RSMPI_FLOAT, ffi::RSMPI_SUM),
                "U32" => (ffi::RSMPI_UINT32_T, ffi::RSMPI_SUM),
                "BF16" => (ffi::RSMPI_UINT16_T, self.bf16_sum.get_or_init(Bf16Sum::new).0),
                other => panic!("no MPI sum of {other}"),
            }
        }
    }

    /// Starts a non-blocking call and tracks its request.
    fn track(&self, call: impl FnOnce(ffi::MPI_Comm, *mut ffi::MPI_Request) -> i32) -> Rc<Request> {
        // SAFETY: reads a constant of the MPI library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let code = call(self.raw(), &mut request);
        assert_eq!(code, 0, "an MPI call among {} ranks failed with code {code}", self.ranks());
        self.watch.progress.track(request)
    }

    /// Records a call that is about to be started.
    fn call<T: Elem>(&self, what: &str, elements: usize) -> Call {
        let number = self.watch.recorder.start(Channel::Group(self.kind), what, elements * size_of::<T>());
        Call { number, peer: None }
    }

    fn ticket(&self, call: Call, requests: Vec<Rc<Request>>) -> MpiTicket {
        MpiTicket { requests, kind: self.kind, call, watch: self.watch.clone() }
    }
}

/// Messages between two ranks arrive in order, so that one tag is enough.
const TAG: i32 = 0;

fn block<A: Float, T: Elem>(x: &Tensor<Cpu<A>, T>) -> *mut c_void {
    x.mem.as_ptr().cast_mut().cast()
}

/// MPI has no bf16: its bits are sent as 16-bit integers, and [`Bf16Sum`] adds them.
fn datatype<T: Elem>() -> ffi::MPI_Datatype {
    // SAFETY: reads constants of the MPI library.
    unsafe {
        match size_of::<T>() {
            2 => ffi::RSMPI_UINT16_T,
            4 => ffi::RSMPI_UINT32_T,
            size => panic!("no MPI type for elements of {size} bytes"),
        }
    }
}

/// The sum of bf16 numbers, each addition in f32 and rounded once.
struct Bf16Sum(ffi::MPI_Op);

impl Bf16Sum {
    fn new() -> Self {
        // SAFETY: `add_bf16` has the signature that MPI calls and outlives the operation; 1 says it commutes.
        unsafe {
            let mut op = ffi::RSMPI_SUM;
            assert_eq!(ffi::MPI_Op_create(Some(add_bf16), 1, &mut op), 0, "MPI_Op_create failed");
            Bf16Sum(op)
        }
    }
}

impl Drop for Bf16Sum {
    fn drop(&mut self) {
        // SAFETY: made by MPI_Op_create, freed once; groups go before MPI is finalized.
        unsafe { ffi::MPI_Op_free(&mut self.0) };
    }
}

unsafe extern "C" fn add_bf16(from: *mut c_void, to: *mut c_void, n: *mut i32, _: *mut ffi::MPI_Datatype) {
    // SAFETY: MPI passes `n` elements of the 16-bit type in each of two buffers that do not overlap.
    let (from, to) = unsafe {
        let n = *n as usize;
        (std::slice::from_raw_parts(from.cast::<bf16>(), n), std::slice::from_raw_parts_mut(to.cast::<bf16>(), n))
    };
    for (x, y) in from.iter().zip(to) {
        *y = bf16::from_f32(x.to_f32() + y.to_f32());
    }
}

fn count(len: usize) -> i32 {
    i32::try_from(len).unwrap_or_else(|_| panic!("{len} elements in one MPI call; the limit is {}", i32::MAX))
}

impl<A: Float> Collectives<Cpu<A>> for MpiGroup {
    fn rank(&self) -> usize {
        self.comm.as_ref().map_or(0, Comm::rank)
    }

    fn size(&self) -> usize {
        self.ranks()
    }

    unsafe fn gather<T: Elem>(&self, _: &Cpu<A>, from: &Tensor<Cpu<A>, T>, to: &Tensor<Cpu<A>, T>) -> MpiTicket {
        let (n, ty) = (count(from.len()), datatype::<T>());
        assert_eq!(to.len(), from.len() * self.ranks(), "elements gathered from {} ranks", self.ranks());
        // SAFETY (this call and those below): both blocks hold the given numbers of elements and stay, unmoved, in a
        // `Pending` until the request is waited for; no two requests share an element that either writes.
        self.ticket(
            self.call::<T>("all-gather", to.len()),
            vec![self.track(|comm, request| unsafe {
                ffi::MPI_Iallgather(block(from).cast_const(), n, ty, block(to), n, ty, comm, request)
            })],
        )
    }

    unsafe fn scatter<T: Elem>(&self, _: &Cpu<A>, from: &Tensor<Cpu<A>, T>, to: &Tensor<Cpu<A>, T>) -> MpiTicket {
        let (n, (ty, sum)) = (count(to.len()), self.sum::<T>());
        assert_eq!(from.len(), to.len() * self.ranks(), "elements scattered over {} ranks", self.ranks());
        // SAFETY: as above.
        self.ticket(
            self.call::<T>("reduce-scatter", from.len()),
            vec![self.track(|comm, request| unsafe {
                ffi::MPI_Ireduce_scatter_block(block(from).cast_const(), block(to), n, ty, sum, comm, request)
            })],
        )
    }

    fn all_reduce<T: Elem>(&self, b: &Cpu<A>, x: Tensor<Cpu<A>, T>) -> Pending<Cpu<A>, T> {
        if self.ranks() == 1 {
            return Pending::ready(x);
        }
        let (n, out) = (count(x.len()), b.alloc(x.rows(), x.cols()));
        let ((ty, sum), call) = (self.sum::<T>(), self.call::<T>("all-reduce", x.len()));
        // SAFETY: as above.
        let request = self.track(|comm, request| unsafe {
            ffi::MPI_Iallreduce(block(&x).cast_const(), block(&out), n, ty, sum, comm, request)
        });
        Pending::in_flight(self.ticket(call, vec![request]), x, out)
    }

    /// In place, by a broadcast from each rank.
    fn all_gather_within<T: Elem>(&self, _: &Cpu<A>, x: Tensor<Cpu<A>, T>) -> Pending<Cpu<A>, T> {
        let ranks = self.ranks();
        if ranks == 1 {
            return Pending::ready(x);
        }
        assert_eq!(x.rows() % ranks, 0, "{} rows of {ranks} ranks", x.rows());
        let (each, ty, call) = (x.len() / ranks, datatype::<T>(), self.call::<T>("all-gather", x.len()));
        let from = |root: usize| {
            // SAFETY: `x` holds `ranks` times `each` elements, so that the pointer is inside it or at its end.
            let rows = unsafe { block(&x).cast::<T>().add(root * each) }.cast();
            // SAFETY: as above; no two of the broadcasts share an element.
            self.track(|comm, request| unsafe { ffi::MPI_Ibcast(rows, count(each), ty, root as i32, comm, request) })
        };
        let requests = (0..ranks).map(from).collect();
        Pending::in_place(self.ticket(call, requests), x)
    }

    fn all_to_all<T: Elem>(
        &self,
        _: &Cpu<A>,
        x: Tensor<Cpu<A>, T>,
        send: &[Range<usize>],
        to: Tensor<Cpu<A>, T>,
        receive: &[Range<usize>],
    ) -> Pending<Cpu<A>, T> {
        let (ty, cols) = (datatype::<T>(), x.cols());
        let call = self.call::<T>("all-to-all", send.iter().map(Range::len).sum::<usize>() * cols);
        let rows = |of: &Tensor<Cpu<A>, T>, rows: &Range<usize>| {
            assert!(rows.end <= of.rows(), "rows {rows:?} of a matrix {:?}", of.shape());
            // SAFETY: the rows are inside the block, or at its end where there are none.
            let first = unsafe { block(of).cast::<T>().add(rows.start * cols) };
            (first.cast::<c_void>(), count(rows.len() * cols))
        };
        let with_rows = |(_, rows): &(i32, &Range<usize>)| !rows.is_empty();
        let mut requests = Vec::new();
        for (peer, range) in (0..).zip(receive).filter(with_rows) {
            let (at, n) = rows(&to, range);
            // SAFETY: as above; the received ranges are apart, and `Pending` owns the block until the request is done.
            requests.push(self.track(|comm, request| unsafe { ffi::MPI_Irecv(at, n, ty, peer, TAG, comm, request) }));
        }
        for (peer, range) in (0..).zip(send).filter(with_rows) {
            let (at, n) = rows(&x, range);
            // SAFETY: as above; MPI only reads the rows.
            requests.push(self.track(|comm, request| unsafe { ffi::MPI_Isend(at, n, ty, peer, TAG, comm, request) }));
        }
        Pending::in_flight(self.ticket(call, requests), x, to)
    }

    fn exchange(&self, b: &Cpu<A>, send: Option<(Act<Cpu<A>>, usize)>, recv: Option<Expected>) -> Exchanged<Cpu<A>> {
        let ty = datatype::<A>();
        let elements = send.as_ref().map_or(0, |(x, _)| x.len());
        let call = self.call::<A>("exchange", elements);
        let with = |peer: usize| Call { peer: Some(self.members[peer]), ..call };
        let received = recv.map(|expected| {
            let to = b.alloc(expected.rows, expected.cols);
            // SAFETY: as above; nothing else writes the block until the request is waited for.
            let request = self.track(|comm, request| unsafe {
                ffi::MPI_Irecv(block(&to), count(to.len()), ty, expected.from as i32, TAG, comm, request)
            });
            Pending::in_place(self.ticket(with(expected.from), vec![request]), to)
        });
        let sent = send.map(|(x, to)| {
            // SAFETY: as above; MPI only reads the block.
            let request = self.track(|comm, request| unsafe {
                ffi::MPI_Isend(block(&x), count(x.len()), ty, to as i32, TAG, comm, request)
            });
            Pending::in_place(self.ticket(with(to), vec![request]), x)
        });
        Exchanged { sent, received }
    }
}
