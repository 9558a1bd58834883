//! Streams and events: what runs beside what, and who waits for whom. The host waits for nothing here but in
//! `Event::wait`.

use cudarc::driver::{DriverError, result, sys};
use std::sync::{Arc, Mutex};

type Done<T> = Result<T, DriverError>;

/// Work in order, beside that of other streams.
pub struct Stream(sys::CUstream);

/// How soon a stream's work is taken up where several have some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    Usual,
    /// Before the usual: what others wait for.
    First,
}

impl Stream {
    /// A stream that waits for no other. The context must be current.
    pub fn new(urgency: Urgency) -> Done<Self> {
        let kind = result::stream::StreamKind::NonBlocking;
        match urgency {
            Urgency::Usual => result::stream::create(kind).map(Stream),
            Urgency::First => {
                let (_least, greatest) = result::stream::get_priority_range()?;
                result::stream::create_with_priority(kind, greatest).map(Stream)
            }
        }
    }

    /// As the driver knows it.
    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// What comes next on this stream waits for the event.
    pub fn wait(&self, event: &Event) -> Done<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live, and are of the device's one context.
        unsafe { result::stream::wait_event(self.0, event.raw, flags) }
    }

    /// Blocks until all that was started is done.
    pub fn synchronize(&self) -> Done<()> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.0) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it was created by `new` and is destroyed once, after what was started on it.
        unsafe {
            _ = result::stream::synchronize(self.0);
            _ = result::stream::destroy(self.0);
        }
    }
}

/// Events that were used before, to be used again: making one takes longer than recording it.
#[derive(Clone, Default)]
pub struct Events(Arc<Free>);

#[derive(Default)]
struct Free {
    /// Without time, and with it.
    free: [Mutex<Vec<Raw>>; 2],
}

struct Raw(sys::CUevent);

// SAFETY: the driver takes an event on any thread whose current context is the event's.
unsafe impl Send for Raw {}

/// Whether an event knows when it was passed; those that do not are cheaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knows {
    Order,
    Time,
}

/// A point in a stream's work.
pub struct Event {
    raw: sys::CUevent,
    knows: Knows,
    home: Events,
}

// SAFETY: as for `Raw`.
unsafe impl Send for Event {}
// SAFETY: the driver's calls on an event may be made from several threads at once.
unsafe impl Sync for Event {}

impl Events {
    /// Now, on this stream.
    pub fn record(&self, stream: &Stream, knows: Knows) -> Done<Event> {
        let free = self.free(knows).pop();
        let raw = match (free, knows) {
            (Some(Raw(raw)), _) => raw,
            (None, Knows::Order) => result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
            (None, Knows::Time) => result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?,
        };
        let event = Event { raw, knows, home: self.clone() };
        // SAFETY: event and stream live, and are of the device's one context.
        unsafe { result::event::record(raw, stream.0)? };
        Ok(event)
    }

    fn free(&self, knows: Knows) -> std::sync::MutexGuard<'_, Vec<Raw>> {
        self.0.free[knows as usize].lock().expect("nothing panics while it holds the list")
    }
}

impl Event {
    /// Whether the stream has passed it.
    pub fn is_past(&self) -> Done<bool> {
        // SAFETY: the event lives and was recorded.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Blocks until the stream has passed it.
    pub fn wait(&self) -> Done<()> {
        // SAFETY: the event lives and was recorded.
        unsafe { result::event::synchronize(self.raw) }
    }

    /// Seconds from the other, which was recorded before; both know the time and are past.
    pub fn seconds_since(&self, earlier: &Event) -> Done<f64> {
        assert_eq!((self.knows, earlier.knows), (Knows::Time, Knows::Time), "seconds between events");
        // SAFETY: both live and were recorded.
        unsafe { result::event::elapsed(earlier.raw, self.raw) }.map(|milliseconds| f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.home.free(self.knows).push(Raw(self.raw));
    }
}

impl Drop for Free {
    fn drop(&mut self) {
        for list in &mut self.free {
            for Raw(raw) in list.get_mut().expect("nothing panics while it holds the list").drain(..) {
                // SAFETY: made by `record`, used by nobody any more, destroyed once. Where the context went before, the
                // event went with it, and the driver says so.
                _ = unsafe { result::event::destroy(raw) };
            }
        }
    }
}
