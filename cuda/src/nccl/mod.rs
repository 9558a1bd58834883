//! Communicators of NCCL: ranks' devices that compute sums together and send each other rows.

mod library;

pub use library::{Nccl, UniqueId};

use crate::device::Stream;
use crate::search::Search;
use cudarc::nccl::sys;
pub use library::shown;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

/// The oldest that finalizes communicators and tells of errors as this engine needs it.
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
    /// The first that is new enough, or what to install.
    pub fn find(search: &Search) -> Result<Rc<Nccl>, String> {
        let old = |nccl: &Nccl| (nccl.version() < OLDEST).then(|| format!("{}, too old", shown(nccl.version())));
        search.first(&SONAMES, Nccl::load, old).map(Rc::new).map_err(|tried| {
            let tried = if tried.is_empty() { String::new() } else { format!(" ({})", tried.join("; ")) };
            format!(
                "several ranks on CUDA need NCCL {} or newer, and there is none{tried}: `pip install nvidia-nccl-cu12`, \
                 or name the folder of libnccl.so.2 with SWALLOW_CUDA_LIBS",
                shown(OLDEST)
            )
        })
    }

    /// For the first rank of a communicator, which tells the others.
    pub fn unique_id(&self) -> Result<UniqueId, String> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: it points to an id that the call fills.
        self.checked(unsafe { (self.unique_id)(&mut id) }, null_mut())?;
        Ok(id)
    }
}

/// This rank's end of a communicator.
pub struct Communicator {
    nccl: Rc<Nccl>,
    raw: *mut c_void,
}

/// What every call of a collective moves.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// Addresses on the device.
    pub from: u64,
    pub to: u64,
    /// Elements: of what an all-reduce reads, an all-gather sends, a reduce-scatter leaves.
    pub len: usize,
    pub of: Type,
}

/// Elements to or from one rank.
#[derive(Debug, Clone, Copy)]
pub struct Message {
    pub at: u64,
    pub len: usize,
    pub of: Type,
    pub peer: usize,
}

type Done = Result<(), String>;

impl Communicator {
    /// Of `size` ranks that all call this with the id of the first; the device's context is current. Blocks until all
    /// have come.
    pub fn join(nccl: &Rc<Nccl>, id: UniqueId, rank: usize, size: usize) -> Result<Communicator, String> {
        let mut raw = null_mut();
        // SAFETY: it points to a handle that the call sets; the id is one that NCCL gave.
        let code = unsafe { (nccl.init)(&mut raw, size as c_int, id, rank as c_int) };
        nccl.checked(code, null_mut())?;
        Ok(Communicator { nccl: nccl.clone(), raw })
    }

    /// # Safety
    /// (This and those below.) The addresses are of the device's memory, as long as the flow says, and nothing else
    /// uses what is written, or writes what is read, until the stream has passed the call.
    pub unsafe fn all_reduce(&self, f: Flow, stream: &Stream) -> Done {
        let (from, to, raw) = (f.from as *const c_void, f.to as *mut c_void, stream.raw().cast());
        // SAFETY: by this function's contract; communicator and stream live.
        self.checked(unsafe { (self.nccl.all_reduce)(from, to, f.len, f.of as c_int, SUM, self.raw, raw) })
    }

    /// # Safety
    /// As above.
    pub unsafe fn all_gather(&self, f: Flow, stream: &Stream) -> Done {
        let (from, to, raw) = (f.from as *const c_void, f.to as *mut c_void, stream.raw().cast());
        // SAFETY: as above.
        self.checked(unsafe { (self.nccl.all_gather)(from, to, f.len, f.of as c_int, self.raw, raw) })
    }

    /// # Safety
    /// As above.
    pub unsafe fn reduce_scatter(&self, f: Flow, stream: &Stream) -> Done {
        let (from, to, raw) = (f.from as *const c_void, f.to as *mut c_void, stream.raw().cast());
        // SAFETY: as above.
        self.checked(unsafe { (self.nccl.reduce_scatter)(from, to, f.len, f.of as c_int, SUM, self.raw, raw) })
    }

    /// A send and a receive at once, either or both.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn exchange(&self, send: Option<Message>, recv: Option<Message>, stream: &Stream) -> Done {
        let raw = stream.raw().cast();
        // SAFETY: as above; what was started is ended whatever comes between.
        unsafe {
            self.checked((self.nccl.group_start)())?;
            let received = recv.map_or(0, |m| {
                (self.nccl.recv)(m.at as *mut c_void, m.len, m.of as c_int, m.peer as c_int, self.raw, raw)
            });
            let sent = send.map_or(0, |m| {
                (self.nccl.send)(m.at as *const c_void, m.len, m.of as c_int, m.peer as c_int, self.raw, raw)
            });
            let ended = (self.nccl.group_end)();
            [received, sent, ended].into_iter().try_for_each(|code| self.checked(code))
        }
    }

    /// What went wrong since, on this rank or on the way to others.
    pub fn error(&self) -> Done {
        let mut code = 0;
        // SAFETY: it points to a code that the call sets; the communicator lives.
        self.checked(unsafe { (self.nccl.async_error)(self.raw, &mut code) })?;
        self.checked(code)
    }

    /// Ends it on a clean end: all ranks call this. Dropped without this, it is aborted, which waits for nobody.
    pub fn finish(mut self) -> Done {
        let raw = std::mem::replace(&mut self.raw, null_mut());
        // SAFETY: the communicator lives, and is destroyed once.
        let ended = unsafe { [(self.nccl.finalize)(raw), (self.nccl.destroy)(raw)] };
        ended.into_iter().try_for_each(|code| self.nccl.checked(code, null_mut()))
    }

    fn checked(&self, code: library::Code) -> Done {
        self.nccl.checked(code, self.raw)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the communicator lives, and is aborted once.
            _ = unsafe { (self.nccl.abort)(self.raw) };
        }
    }
}
