//! Streams and events: concurrency, and waits between streams. The host blocks only in `Event::wait` and
//! `Stream::synchronize`.

use cudarc::driver::{DriverError, result, sys};
use std::sync::{Arc, Mutex, MutexGuard};

type Done<T> = Result<T, DriverError>;

/// A queue of work that runs in order, concurrently with other streams.
pub struct Stream(sys::CUstream);

/// A stream's scheduling priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Normal,
    /// The device's greatest priority, for work that other streams wait for.
    High,
}

impl Stream {
    /// A non-blocking stream, which does not synchronize with the default stream. The context must be current.
    pub fn new(priority: Priority) -> Done<Self> {
        let kind = result::stream::StreamKind::NonBlocking;
        match priority {
            Priority::Normal => result::stream::create(kind).map(Stream),
            Priority::High => {
                let (_least, greatest) = result::stream::get_priority_range()?;
                result::stream::create_with_priority(kind, greatest).map(Stream)
            }
        }
    }

    /// The driver's handle.
    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Makes later work on this stream wait for the event.
    pub fn wait(&self, event: &Event) -> Done<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive and belong to the device's one context.
        unsafe { result::stream::wait_event(self.0, event.raw, flags) }
    }

    /// Blocks until all enqueued work has completed.
    pub fn synchronize(&self) -> Done<()> {
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: `new` created it; it is destroyed once, after its work has completed.
        unsafe {
            _ = result::stream::synchronize(self.0);
            _ = result::stream::destroy(self.0);
        }
    }
}

/// A pool of events: creating one takes longer than recording it.
#[derive(Clone, Default)]
pub struct Events(Arc<Free>);

#[derive(Default)]
struct Free {
    /// Free events, by `Timing`.
    free: [Mutex<Vec<Raw>>; 2],
}

struct Raw(sys::CUevent);

// SAFETY: the driver accepts an event on any thread whose current context is the event's.
unsafe impl Send for Raw {}

/// Whether an event stores the time at which it is reached. Events without timing are cheaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    Disabled,
    Enabled,
}

/// A point in a stream's work. Dropping an event returns it to its pool.
pub struct Event {
    raw: sys::CUevent,
    timing: Timing,
    pool: Events,
}

// SAFETY: as for `Raw`.
unsafe impl Send for Event {}
// SAFETY: the driver's calls on an event may be made from several threads at once.
unsafe impl Sync for Event {}

impl Events {
    /// Records an event on this stream now.
    pub fn record(&self, stream: &Stream, timing: Timing) -> Done<Event> {
        let free = self.free(timing).pop();
        let raw = match (free, timing) {
            (Some(Raw(raw)), _) => raw,
            (None, Timing::Disabled) => result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
            (None, Timing::Enabled) => result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?,
        };
        let event = Event { raw, timing, pool: self.clone() };
        // SAFETY: event and stream are alive and belong to the device's one context.
        unsafe { result::event::record(raw, stream.0)? };
        Ok(event)
    }

    fn free(&self, timing: Timing) -> MutexGuard<'_, Vec<Raw>> {
        self.0.free[timing as usize].lock().expect("no thread panics while it holds this lock")
    }
}

impl Event {
    /// Whether the stream has reached it.
    pub fn is_past(&self) -> Done<bool> {
        // SAFETY: the event is alive and was recorded.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Blocks until the stream has reached it.
    pub fn wait(&self) -> Done<()> {
        // SAFETY: the event is alive and was recorded.
        unsafe { result::event::synchronize(self.raw) }
    }

    /// Seconds since an earlier event. Both have timing enabled and have been reached.
    pub fn seconds_since(&self, earlier: &Event) -> Done<f64> {
        assert_eq!((self.timing, earlier.timing), (Timing::Enabled, Timing::Enabled), "seconds between events");
        // SAFETY: both are alive and were recorded.
        unsafe { result::event::elapsed(earlier.raw, self.raw) }.map(|milliseconds| f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.pool.free(self.timing).push(Raw(self.raw));
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        for list in &mut self.free {
            for Raw(raw) in list.get_mut().expect("no thread panics while it holds this lock").drain(..) {
                // SAFETY: `record` created it, nothing uses it any more, and it is destroyed once. If the context was
                // destroyed before, so was the event, and the driver returns an error.
                _ = unsafe { result::event::destroy(raw) };
            }
        }
    }
}
