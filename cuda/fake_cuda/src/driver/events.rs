//! Events. A wait is for the last record at the time of the call; an event without a record is complete.

use super::device::current;
use super::streams::stream;
use crate::code::{Code, INVALID_HANDLE, INVALID_VALUE, NOT_READY, Outcome, status_of};
use crate::fault;
use crate::handles::Handles;
use crate::stream::Record;
use std::ffi::{c_uint, c_void};
use std::sync::{Arc, Mutex};

/// CU_EVENT_DISABLE_TIMING, and the mask of all flags.
const NO_TIMING: c_uint = 2;
const FLAGS: c_uint = 7;

struct Event {
    timed: bool,
    latest: Mutex<Option<Arc<Record>>>,
}

static EVENTS: Handles<Event> = Handles::from(0x2000_0000);

impl Event {
    fn latest(&self) -> Option<Arc<Record>> {
        self.latest.lock().expect("no holder panics").clone()
    }
}

fn event(handle: *mut c_void) -> Outcome<Arc<Event>> {
    current()?;
    EVENTS.get(handle)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(to: *mut *mut c_void, flags: c_uint) -> Code {
    let create = |_| {
        if flags & !FLAGS != 0 {
            return Err(INVALID_VALUE);
        }
        let event = Event { timed: flags & NO_TIMING == 0, latest: Mutex::default() };
        // SAFETY: the caller passes a valid pointer.
        unsafe { *to = EVENTS.add(Arc::new(event)) };
        Ok(())
    };
    status_of(current().and_then(create))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(handle: *mut c_void, on: *mut c_void) -> Code {
    let record = || {
        let (event, stream) = (event(handle)?, stream(on)?);
        *event.latest.lock().expect("no holder panics") = Some(stream.record());
        Ok(())
    };
    status_of(record())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(on: *mut c_void, handle: *mut c_void, _: c_uint) -> Code {
    let wait = || {
        let (event, stream) = (event(handle)?, stream(on)?);
        if let Some(record) = event.latest() {
            stream.follow(record);
        }
        Ok(())
    };
    status_of(wait())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(handle: *mut c_void) -> Code {
    let query = |event: Arc<Event>| match event.latest() {
        Some(record) if record.at().is_none() => Err(NOT_READY),
        _ => fault::check(),
    };
    status_of(event(handle).and_then(query))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(handle: *mut c_void) -> Code {
    status_of(event(handle).and_then(|event| event.latest().map_or(Ok(()), |record| record.wait())))
}

/// Milliseconds between two events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(to: *mut f32, from: *mut c_void, till: *mut c_void) -> Code {
    let at = |handle| {
        let event = event(handle)?;
        if !event.timed {
            return Err(INVALID_HANDLE);
        }
        event.latest().ok_or(INVALID_HANDLE)?.at().ok_or(NOT_READY)
    };
    let elapsed = || {
        let (from, till) = (at(from)?, at(till)?);
        let forward = till.saturating_duration_since(from).as_secs_f64();
        let backward = from.saturating_duration_since(till).as_secs_f64();
        // SAFETY: the caller passes a valid pointer.
        unsafe { *to = ((forward - backward) * 1e3) as f32 };
        Ok(())
    };
    status_of(elapsed())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(to: *mut f32, from: *mut c_void, till: *mut c_void) -> Code {
    // SAFETY: the caller's pointers are passed on.
    unsafe { cuEventElapsedTime_v2(to, from, till) }
}

/// Waits that have begun are not affected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(handle: *mut c_void) -> Code {
    status_of(EVENTS.remove(handle).map(|_| ()))
}
