//! Streams. No stream waits for another by itself, not even the default stream. A program that is correct here is also
//! correct with the real driver, whose default stream synchronizes with blocking streams.

use super::device::current;
use crate::code::{Code, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Outcome, abort, status_of};
use crate::fault;
use crate::handles::Handles;
use crate::memory;
use crate::stream::{Stream, Work};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

static STREAMS: Handles<Stream> = Handles::from(0x10_0000);
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// The stream of a handle; null is the default stream.
pub(crate) fn stream(handle: *mut c_void) -> Outcome<Arc<Stream>> {
    static UNNAMED: OnceLock<Arc<Stream>> = OnceLock::new();
    let device = current()?;
    let stream = match handle.is_null() {
        true => UNNAMED.get_or_init(|| Stream::start(0, device)).clone(),
        false => STREAMS.get(handle)?,
    };
    if stream.device == device { Ok(stream) } else { Err(INVALID_HANDLE) }
}

/// All streams but the default stream.
pub(crate) fn streams() -> Vec<Arc<Stream>> {
    STREAMS.all()
}

/// Enqueues work on a stream; on a device that has failed it is dropped. An invalid handle ends the process.
pub fn enqueue(handle: *mut c_void, work: Work) {
    match stream(handle) {
        Ok(stream) => stream.push(work),
        Err(code) if fault::check() == Err(code) => {}
        Err(code) => abort(&format!("work for the stream {handle:?}: error {code}")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(to: *mut *mut c_void, flags: c_uint) -> Code {
    // SAFETY: the caller's pointer is passed on.
    unsafe { cuStreamCreateWithPriority(to, flags, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut *mut c_void, flags: c_uint, _: c_int) -> Code {
    let create = |device| {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let number = STARTED.fetch_add(1, Ordering::Relaxed) + 1;
        // SAFETY: the caller passes a valid pointer.
        unsafe { *to = STREAMS.add(Stream::start(number, device)) };
        Ok(())
    };
    status_of(current().and_then(create))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(handle: *mut c_void) -> Code {
    status_of(stream(handle).and_then(|stream| stream.wait()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(handle: *mut c_void) -> Code {
    status_of(stream(handle).and_then(|stream| if stream.idle() { fault::check() } else { Err(NOT_READY) }))
}

/// Work that was enqueued on the stream still runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(handle: *mut c_void) -> Code {
    status_of(STREAMS.remove(handle).map(|stream| stream.close()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Code {
    status_of(wait_for_all())
}

pub(crate) fn wait_for_all() -> Outcome<()> {
    stream(std::ptr::null_mut())?.wait()?;
    streams().iter().try_for_each(|stream| stream.wait())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWriteValue32_v2(handle: *mut c_void, at: u64, value: u32, _: c_uint) -> Code {
    let write = |stream: Arc<Stream>| {
        memory::known(at, 4)?;
        if !at.is_multiple_of(4) {
            return Err(INVALID_VALUE);
        }
        stream.push(move || {
            // SAFETY: the four bytes are aligned and lie in a block that is live until its streams have completed;
            // concurrent readers treat them as an atomic.
            unsafe { &*(at as *const AtomicU32) }.store(value, Ordering::Release);
        });
        Ok(())
    };
    status_of(stream(handle).and_then(write))
}

/// The wait for a value that is at least `value` (CU_STREAM_WAIT_VALUE_GEQ, whose code is 0).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitValue32_v2(handle: *mut c_void, at: u64, value: u32, flags: c_uint) -> Code {
    let wait = |stream: Arc<Stream>| {
        memory::known(at, 4)?;
        if !at.is_multiple_of(4) || flags != 0 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: as for writes. The comparison is cyclic.
        let reached =
            move || unsafe { &*(at as *const AtomicU32) }.load(Ordering::Acquire).wrapping_sub(value) as i32 >= 0;
        stream.hold(reached);
        Ok(())
    };
    status_of(stream(handle).and_then(wait))
}
