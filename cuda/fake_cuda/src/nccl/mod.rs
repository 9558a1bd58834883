//! NCCL's functions, with the names and types of `nccl.h`. Ranks are processes of one machine, or threads of one
//! process, and every rank has a socket to every other.

mod bootstrap;
mod code;
mod comm;
mod data_type;
mod group;
mod plan;
mod wire;

use crate::driver::{current, uuid};
use crate::handles::Handles;
use crate::memory::{self, known};
use crate::settings::settings;
use bootstrap::Hello;
use code::*;
use comm::Comm;
use data_type::{DataType, ReduceOp};
use plan::Op;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;
use wire::{Kind, Signature};

static COMMS: Handles<Comm> = Handles::from(0x5000_0000);

/// `ncclUniqueId`, which contains a text.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Id(pub [u8; 128]);

/// The first fields of `ncclConfig_t`, which are the same in all versions.
#[repr(C)]
pub struct Config {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub cga_cluster_size: c_int,
    pub min_ctas: c_int,
    pub max_ctas: c_int,
}

/// NCCL_CONFIG_UNDEF_INT.
const UNDEFINED: c_int = c_int::MIN;

/// Calls of more bytes need connections of their own.
const LARGE: usize = 1 << 20;

/// The magic number of NCCL_CONFIG_INITIALIZER.
const MAGIC: c_uint = 0xcafe_beef;

fn comm(handle: *mut c_void) -> Outcome<Arc<Comm>> {
    COMMS.get(handle).map_err(|_| fail(INVALID_ARGUMENT, "an unknown communicator"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = settings().nccl };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(code: Code) -> *const c_char {
    description(code).as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_: *mut c_void) -> *const c_char {
    last().as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(to: *mut Id) -> Code {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    if settings().alone {
        return fail(SYSTEM_ERROR, "there is no socket interface");
    }
    let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let text = format!("fake_cuda-nccl-{process}-{number}-{now}");
    let mut id = Id([0; 128]);
    id.0[..text.len()].copy_from_slice(text.as_bytes());
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = id };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(to: *mut *mut c_void, size: c_int, id: Id, rank: c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(unsafe { init(to, size, id, rank, true) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    to: *mut *mut c_void,
    size: c_int,
    id: Id,
    rank: c_int,
    config: *const Config,
) -> Code {
    // SAFETY: the pointer is valid or null.
    let config = unsafe { config.as_ref() };
    if config.is_some_and(|config| config.magic != MAGIC) {
        return fail(INVALID_ARGUMENT, "a configuration that was not initialized");
    }
    let most = settings().nccl_ctas;
    for ctas in config.into_iter().flat_map(|config| [config.min_ctas, config.max_ctas]) {
        if ctas != UNDEFINED && !(1..=most).contains(&ctas) {
            return fail(INVALID_ARGUMENT, &format!("{ctas} thread blocks, not 1 to {most}"));
        }
    }
    let blocking = config.is_none_or(|config| config.blocking != 0);
    // SAFETY: the caller passes a valid pointer.
    match unsafe { init(to, size, id, rank, blocking) } {
        Ok(()) if !blocking => IN_PROGRESS,
        done => status_of(done),
    }
}

/// Takes the memory of NCCL's connections, once in a process.
fn take_memory(device: c_int) -> Outcome<()> {
    static TAKEN: OnceLock<bool> = OnceLock::new();
    let bytes = settings().nccl_memory;
    let take = || bytes == 0 || memory::allocate(bytes, memory::Kind::Device(device)).is_ok();
    match TAKEN.get_or_init(take) {
        true => Ok(()),
        false => Err(fail(UNHANDLED_CUDA_ERROR, &format!("out of memory: {bytes} bytes for connections"))),
    }
}

unsafe fn init(to: *mut *mut c_void, size: c_int, id: Id, rank: c_int, blocking: bool) -> Outcome<()> {
    let text = CStr::from_bytes_until_nul(&id.0).ok().and_then(|text| text.to_str().ok());
    let (Some(id), true) = (text.filter(|text| !text.is_empty()), (0..size).contains(&rank)) else {
        return Err(fail(INVALID_ARGUMENT, &format!("rank {rank} of {size}, or an invalid id")));
    };
    let device =
        current().map_err(|_| fail(UNHANDLED_CUDA_ERROR, "a thread without a device initializes a communicator"))?;
    let uuid = uuid(device).map_err(|_| UNHANDLED_CUDA_ERROR)?;
    if !settings().connects_late {
        take_memory(device)?;
    }
    let comm = Comm::start(id.to_string(), Hello::new(rank as usize, size as usize, uuid), device, blocking);
    let made = group::make(comm.clone());
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = if made.is_ok() { COMMS.add(comm) } else { std::ptr::null_mut() } };
    made
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(handle: *mut c_void, to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(comm(handle).map(|comm| unsafe { *to = comm.size as c_int }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(handle: *mut c_void, to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(comm(handle).map(|comm| unsafe { *to = comm.rank as c_int }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(handle: *mut c_void, to: *mut c_int) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(comm(handle).map(|comm| unsafe { *to = comm.device }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(handle: *mut c_void, to: *mut Code) -> Code {
    // SAFETY: the caller passes a valid pointer.
    status_of(comm(handle).map(|comm| unsafe { *to = comm.status() }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(handle: *mut c_void) -> Code {
    let finalize = |comm: Arc<Comm>| {
        comm.finalize();
        if comm.blocking {
            comm.drain();
        }
        comm.status()
    };
    comm(handle).map_or_else(|code| code, finalize)
}

/// Waits for operations in progress, like the real function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(handle: *mut c_void) -> Code {
    let destroy = |comm: Arc<Comm>| {
        comm.drain();
        comm.leave();
    };
    status_of(COMMS.remove(handle).map(destroy).map_err(|_| INVALID_ARGUMENT))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(handle: *mut c_void) -> Code {
    status_of(COMMS.remove(handle).map(|comm| comm.abort()).map_err(|_| INVALID_ARGUMENT))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> Code {
    group::start();
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> Code {
    status_of(group::end())
}

/// The arguments of a C call.
struct Call {
    kind: Kind,
    send: u64,
    recv: u64,
    count: usize,
    data_type: c_int,
    reduce: c_int,
    /// The root or the peer.
    rank: c_int,
}

impl Call {
    fn start(self, handle: *mut c_void, stream: *mut c_void) -> Code {
        let go = || {
            let comm = comm(handle)?;
            let op = self.op(&comm)?;
            let (sent, got) = op.what.counts(comm.size);
            if sent.max(got) * op.what.data_type.bytes() > LARGE {
                take_memory(comm.device)?;
            }
            if op.what.count == 0 && op.what.is_collective() { Ok(()) } else { group::call(comm, op, stream) }
        };
        status_of(go())
    }

    fn op(&self, comm: &Comm) -> Outcome<Op> {
        let wrong = |what: String| fail(INVALID_ARGUMENT, &format!("{:?}: {what}", self.kind));
        let data_type = DataType::of(self.data_type).ok_or_else(|| wrong(format!("data type {}", self.data_type)))?;
        let reduce = ReduceOp::of(self.reduce).ok_or_else(|| wrong(format!("reduction {}", self.reduce)))?;
        let rank = usize::try_from(self.rank).ok().filter(|rank| *rank < comm.size);
        let rank = rank.ok_or_else(|| wrong(format!("rank {} of {}", self.rank, comm.size)))?;
        let root = if self.kind == Kind::Broadcast { rank } else { 0 };
        let what = Signature { kind: self.kind, data_type, reduce, count: self.count, root };
        let (sent, got) = what.counts(comm.size);
        let reads = self.kind != Kind::Broadcast || rank == comm.rank;
        let send = (if reads { self.send } else { self.recv }, sent * data_type.bytes());
        let recv = (self.recv, got * data_type.bytes());
        for (at, len) in [send, recv].into_iter().filter(|(_, len)| *len > 0) {
            known(at, len).map_err(|_| wrong(format!("{len} bytes at {at:#x}, which no device can access")))?;
        }
        if sent > 0 && got > 0 && !apart(send, recv) && !self.in_place(comm.rank, send, recv) {
            return Err(wrong("input and output overlap".into()));
        }
        Ok(Op { what, send: self.send, recv: self.recv, peer: rank, hangs: false })
    }

    /// Whether the shorter buffer is this rank's part of the longer one.
    fn in_place(&self, rank: usize, send: (u64, usize), recv: (u64, usize)) -> bool {
        let (short, long) = if send.1 < recv.1 { (send, recv) } else { (recv, send) };
        short.0 == if short.1 == long.1 { long.0 } else { long.0 + (rank * short.1) as u64 }
    }
}

fn apart((a, n): (u64, usize), (b, m): (u64, usize)) -> bool {
    a + n as u64 <= b || b + m as u64 <= a
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: c_int,
    reduce: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> Code {
    let (send, recv) = (send as u64, recv as u64);
    Call { kind: Kind::AllReduce, send, recv, count, data_type, reduce, rank: 0 }.start(comm, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: c_int,
    reduce: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> Code {
    let (send, recv) = (send as u64, recv as u64);
    Call { kind: Kind::ReduceScatter, send, recv, count, data_type, reduce, rank: 0 }.start(comm, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> Code {
    let (send, recv) = (send as u64, recv as u64);
    Call { kind: Kind::AllGather, send, recv, count, data_type, reduce: 0, rank: 0 }.start(comm, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: *const c_void,
    recv: *mut c_void,
    count: usize,
    data_type: c_int,
    root: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> Code {
    let (send, recv) = (send as u64, recv as u64);
    Call { kind: Kind::Broadcast, send, recv, count, data_type, reduce: 0, rank: root }.start(comm, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    send: *const c_void,
    count: usize,
    data_type: c_int,
    peer: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> Code {
    Call { kind: Kind::Send, send: send as u64, recv: 0, count, data_type, reduce: 0, rank: peer }.start(comm, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    recv: *mut c_void,
    count: usize,
    data_type: c_int,
    peer: c_int,
    comm: *mut c_void,
    stream: *mut c_void,
) -> Code {
    Call { kind: Kind::Recv, send: 0, recv: recv as u64, count, data_type, reduce: 0, rank: peer }.start(comm, stream)
}
