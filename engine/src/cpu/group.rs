//! Collectives of the CPU backend: non-blocking MPI calls on pool blocks.
//!
//! Open MPI moves data only inside MPI calls, so ops [`Progress::poke`] what is in flight.

use super::{Cpu, Float};
use crate::backend::{Acc, Backend, Collectives, Elem, Pending, Tensor, Ticket};
use crate::mpi::Comm;
use mpi::ffi;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::rc::{Rc, Weak};

/// The requests that have not been waited for.
#[derive(Clone, Default)]
pub struct Progress(Rc<RefCell<Vec<Weak<Request>>>>);

struct Request(Cell<ffi::MPI_Request>);

impl Progress {
    /// Lets MPI move data.
    pub fn poke(&self) {
        if self.0.borrow().is_empty() {
            return;
        }
        self.0.borrow_mut().retain(|request| request.upgrade().is_some_and(|request| !request.test()));
    }

    fn track(&self, request: ffi::MPI_Request) -> MpiTicket {
        let request = Rc::new(Request(Cell::new(request)));
        self.0.borrow_mut().push(Rc::downgrade(&request));
        MpiTicket(request)
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
}

/// One request; MPI sets it to null once it is done.
pub struct MpiTicket(Rc<Request>);

impl Ticket for MpiTicket {
    fn wait(self) {
        let mut request = self.0.0.get();
        // SAFETY: as in `test`; the buffers live in the `Pending` that holds this ticket.
        unsafe { ffi::MPI_Wait(&mut request, ffi::RSMPI_STATUS_IGNORE) };
        self.0.0.set(request);
    }
}

/// One communicator and where its requests are tracked.
pub struct MpiGroup {
    comm: Comm,
    progress: Progress,
}

impl MpiGroup {
    pub fn new(comm: Comm, progress: Progress) -> Self {
        MpiGroup { comm, progress }
    }

    /// Starts a call that reads `input` and writes `output`; both are owned by the result.
    fn start<A: Float, T: Elem>(
        &self,
        input: Tensor<Cpu<A>, T>,
        output: Tensor<Cpu<A>, T>,
        call: impl FnOnce(*const c_void, *mut c_void, ffi::MPI_Comm, *mut ffi::MPI_Request) -> i32,
    ) -> Pending<Cpu<A>, T> {
        // SAFETY: reads a constant of the MPI library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        let code =
            call(input.mem.as_ptr().cast(), output.mem.as_ptr().cast_mut().cast(), self.comm.raw(), &mut request);
        assert_eq!(code, 0, "an MPI collective of {} ranks failed with code {code}", self.comm.size());
        Pending::under_way(self.progress.track(request), input, output)
    }
}

/// MPI has no bf16: only bits travel as 16-bit integers, sums are f32.
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

fn count(len: usize) -> i32 {
    i32::try_from(len).unwrap_or_else(|_| panic!("{len} elements in one MPI call; the limit is {}", i32::MAX))
}

impl<A: Float> Collectives<Cpu<A>> for MpiGroup {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn size(&self) -> usize {
        self.comm.size()
    }

    fn all_reduce(&self, b: &Cpu<A>, x: Acc<Cpu<A>>) -> Pending<Cpu<A>, f32> {
        if self.comm.size() == 1 {
            return Pending::ready(x);
        }
        let (n, out) = (count(x.len()), b.alloc(x.rows(), x.cols()));
        // SAFETY (this call and those below): both blocks hold the counts given and live, unmoved, in the
        // `Pending` until the request is waited for; no two requests share a block.
        self.start(x, out, |from, to, comm, request| unsafe {
            ffi::MPI_Iallreduce(from, to, n, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, comm, request)
        })
    }

    fn all_gather<T: Elem>(&self, b: &Cpu<A>, x: Tensor<Cpu<A>, T>) -> Pending<Cpu<A>, T> {
        if self.comm.size() == 1 {
            return Pending::ready(x);
        }
        let (n, ty) = (count(x.len()), datatype::<T>());
        let out = b.alloc(x.rows() * self.comm.size(), x.cols());
        // SAFETY: as above; `out` holds the ranks' counts together.
        self.start(x, out, |from, to, comm, request| unsafe {
            ffi::MPI_Iallgather(from, n, ty, to, n, ty, comm, request)
        })
    }

    fn reduce_scatter(&self, b: &Cpu<A>, x: Acc<Cpu<A>>) -> Pending<Cpu<A>, f32> {
        let ranks = self.comm.size();
        if ranks == 1 {
            return Pending::ready(x);
        }
        assert_eq!(x.rows() % ranks, 0, "{} rows scattered over {ranks} ranks", x.rows());
        let out = b.alloc(x.rows() / ranks, x.cols());
        let n = count(out.len());
        // SAFETY: as above; `x` holds the ranks' counts together.
        self.start(x, out, |from, to, comm, request| unsafe {
            ffi::MPI_Ireduce_scatter_block(from, to, n, ffi::RSMPI_FLOAT, ffi::RSMPI_SUM, comm, request)
        })
    }
}
