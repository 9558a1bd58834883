//! NCCL communicators.

mod library;

pub use library::{Nccl, UniqueId, shown};

use crate::device::Stream;
use crate::search::{Search, listed};
use cudarc::nccl::sys;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

/// The oldest supported version: earlier ones finalize communicators and report errors differently.
const OLDEST: i32 = 21800;
const SONAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    U32 = sys::ncclDataType_t::ncclUint32 as isize,
    F32 = sys::ncclDataType_t::ncclFloat32 as isize,
    Bf16 = sys::ncclDataType_t::ncclBfloat16 as isize,
}

const SUM: c_int = sys::ncclRedOp_t::ncclSum as c_int;

impl Nccl {
    /// The first library that is new enough; the error says what to install.
    pub fn find(search: &Search) -> Result<Rc<Nccl>, String> {
        let old = |nccl: &Nccl| (nccl.version() < OLDEST).then(|| format!("{}, too old", shown(nccl.version())));
        search.first(&SONAMES, Nccl::load, old).map(Rc::new).map_err(|tried| {
            format!(
                "several ranks on CUDA need NCCL {} or newer, and there is none{}: `pip install nvidia-nccl-cu12`, or \
                 name the folder of libnccl.so.2 in SWALLOW_CUDA_LIBS",
                shown(OLDEST),
                listed(&tried)
            )
        })
    }

    /// An id for a new communicator. Its first rank creates it and sends it to the others.
    pub fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the call fills the id.
        self.checked(unsafe { (self.api.unique_id)(&mut id) }, null_mut())?;
        Ok(id)
    }
}

/// This rank's end of a communicator.
pub struct Communicator {
    nccl: Rc<Nccl>,
    raw: *mut c_void,
}

/// The buffers of a collective.
#[derive(Debug, Clone, Copy)]
pub struct Buffers {
    /// Device addresses.
    pub from: u64,
    pub to: u64,
    /// Elements that an all-reduce reads, an all-gather sends, or a reduce-scatter writes.
    pub len: usize,
    pub of: Type,
}

/// Elements sent to or received from one rank.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    pub at: u64,
    pub len: usize,
    pub of: Type,
    pub peer: usize,
}

type Done = Result<(), String>;

impl Communicator {
    /// Joins a communicator of `size` ranks, which all call this with the id of the first. Blocks until all have. The
    /// device's context must be current. A call takes at most `ctas` thread blocks.
    pub fn join(nccl: &Rc<Nccl>, id: UniqueId, rank: usize, size: usize, ctas: usize) -> Result<Communicator, String> {
        let (mut raw, mut config) = (null_mut(), library::Config::with_ctas(ctas));
        // SAFETY: the call sets the handle and reads the configuration; the id is from NCCL.
        let code = unsafe { (nccl.api.init)(&mut raw, size as c_int, id, rank as c_int, &mut config) };
        nccl.checked(code, null_mut())?;
        Ok(Communicator { nccl: nccl.clone(), raw })
    }

    /// # Safety
    /// The addresses are device memory of the given lengths. Until the stream has completed the call, nothing else
    /// accesses what it writes, and nothing writes what it reads.
    pub unsafe fn all_reduce(&self, f: Buffers, stream: &Stream) -> Done {
        let (from, to, raw) = (f.from as *const c_void, f.to as *mut c_void, stream.raw().cast());
        // SAFETY: by this function's contract; communicator and stream are alive.
        self.checked(unsafe { (self.nccl.api.all_reduce)(from, to, f.len, f.of as c_int, SUM, self.raw, raw) })
    }

    /// # Safety
    /// The same contract as [`Self::all_reduce`].
    pub unsafe fn all_gather(&self, f: Buffers, stream: &Stream) -> Done {
        let (from, to, raw) = (f.from as *const c_void, f.to as *mut c_void, stream.raw().cast());
        // SAFETY: as above.
        self.checked(unsafe { (self.nccl.api.all_gather)(from, to, f.len, f.of as c_int, self.raw, raw) })
    }

    /// # Safety
    /// The same contract as [`Self::all_reduce`].
    pub unsafe fn reduce_scatter(&self, f: Buffers, stream: &Stream) -> Done {
        let (from, to, raw) = (f.from as *const c_void, f.to as *mut c_void, stream.raw().cast());
        // SAFETY: as above.
        self.checked(unsafe { (self.nccl.api.reduce_scatter)(from, to, f.len, f.of as c_int, SUM, self.raw, raw) })
    }

    /// Sends and receives, all at once.
    ///
    /// # Safety
    /// The same contract as [`Self::all_reduce`].
    pub unsafe fn exchange(&self, sends: &[Message], receives: &[Message], stream: &Stream) -> Done {
        let (api, raw) = (&self.nccl.api, stream.raw().cast());
        // SAFETY: as above; the group is ended whatever the calls in it return.
        unsafe {
            self.checked((api.group_start)())?;
            let receive =
                |m: &Message| (api.recv)(m.at as *mut c_void, m.len, m.of as c_int, m.peer as c_int, self.raw, raw);
            let send =
                |m: &Message| (api.send)(m.at as *const c_void, m.len, m.of as c_int, m.peer as c_int, self.raw, raw);
            let called = receives.iter().map(receive).chain(sends.iter().map(send)).collect::<Vec<_>>();
            let ended = (api.group_end)();
            called.into_iter().chain([ended]).try_for_each(|code| self.checked(code))
        }
    }

    /// An asynchronous error, on this rank or on a connection.
    pub fn error(&self) -> Done {
        let mut code = 0;
        // SAFETY: the call sets the code; the communicator is alive.
        self.checked(unsafe { (self.nccl.api.async_error)(self.raw, &mut code) })?;
        self.checked(code)
    }

    /// Finalizes and destroys the communicator; all ranks call this. Dropping it instead aborts, without waiting for
    /// others.
    pub fn finish(mut self) -> Done {
        let raw = std::mem::replace(&mut self.raw, null_mut());
        // SAFETY: the communicator is alive, and is destroyed once.
        let ended = unsafe { [(self.nccl.api.finalize)(raw), (self.nccl.api.destroy)(raw)] };
        ended.into_iter().try_for_each(|code| self.nccl.checked(code, null_mut()))
    }

    fn checked(&self, code: library::Code) -> Done {
        self.nccl.checked(code, self.raw)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the communicator is alive, and is aborted once.
            _ = unsafe { (self.nccl.api.abort)(self.raw) };
        }
    }
}
