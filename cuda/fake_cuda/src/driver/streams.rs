//! Streams. None waits for another by itself, the one of no name neither: whoever is right here is right there, where
//! that one waits for those that were not made to be left alone.

use super::device::current;
use crate::code::{Code, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Said, answer, die};
use crate::fault;
use crate::handles::Handles;
use crate::memory;
use crate::stream::{Stream, Work};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

static STREAMS: Handles<Stream> = Handles::from(0x10_0000);
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// The stream of this handle; null is the one that is always there.
pub(crate) fn stream(handle: *mut c_void) -> Said<Arc<Stream>> {
    static UNNAMED: OnceLock<Arc<Stream>> = OnceLock::new();
    let device = current()?;
    let stream = match handle.is_null() {
        true => UNNAMED.get_or_init(|| Stream::start(0, device)).clone(),
        false => STREAMS.get(handle)?,
    };
    if stream.device == device { Ok(stream) } else { Err(INVALID_HANDLE) }
}

/// Every stream but the one without a name.
pub(crate) fn streams() -> Vec<Arc<Stream>> {
    STREAMS.all()
}

/// Has a stream do this after what was started on it before; on a device that has failed it does not happen. A stream
/// that is not there ends the process.
pub fn enqueue(handle: *mut c_void, work: Work) {
    match stream(handle) {
        Ok(stream) => stream.push(work),
        Err(code) if fault::check() == Err(code) => {}
        Err(code) => die(&format!("work for the stream {handle:?}: error {code}")),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(to: *mut *mut c_void, flags: c_uint) -> Code {
    // SAFETY: the caller's pointer is handed on.
    unsafe { cuStreamCreateWithPriority(to, flags, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(to: *mut *mut c_void, flags: c_uint, _: c_int) -> Code {
    let create = |device| {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let number = STARTED.fetch_add(1, Ordering::Relaxed) + 1;
        // SAFETY: the caller gives a place for a handle.
        unsafe { *to = STREAMS.add(Stream::start(number, device)) };
        Ok(())
    };
    answer(current().and_then(create))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(handle: *mut c_void) -> Code {
    answer(stream(handle).and_then(|stream| stream.wait()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(handle: *mut c_void) -> Code {
    answer(stream(handle).and_then(|stream| if stream.idle() { fault::check() } else { Err(NOT_READY) }))
}

/// What was started on it is still done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(handle: *mut c_void) -> Code {
    answer(STREAMS.remove(handle).map(|stream| stream.close()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Code {
    answer(wait_for_all())
}

pub(crate) fn wait_for_all() -> Said<()> {
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
            // SAFETY: the four bytes lie aligned in a block that lives until its streams have passed; whoever looks
            // at them meanwhile looks as at an atomic.
            unsafe { &*(at as *const AtomicU32) }.store(value, Ordering::Release);
        });
        Ok(())
    };
    answer(stream(handle).and_then(write))
}
