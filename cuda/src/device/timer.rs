//! Time on a device, between two events of its stream.

use super::{Device, Result as Done};
use cudarc::driver::{DriverError, result, sys};

impl Device {
    /// Seconds that the device took for what `work` starts on it. Waits for the end.
    pub fn seconds(&self, work: impl FnOnce()) -> Done<f64> {
        let (start, end) = (self.checked(Event::new())?, self.checked(Event::new())?);
        self.checked(start.record(self))?;
        work();
        self.checked(end.record(self))?;
        self.sync()?;
        // SAFETY: both were recorded on this device's stream, which has passed them.
        let milliseconds = self.checked(unsafe { result::event::elapsed(start.0, end.0) })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

struct Event(sys::CUevent);

impl Event {
    fn new() -> Result<Self, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Event)
    }

    fn record(&self, device: &Device) -> Result<(), DriverError> {
        // SAFETY: event and stream live, and are of one context.
        unsafe { result::event::record(self.0, device.stream.0) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created by `new` and is destroyed once.
        _ = unsafe { result::event::destroy(self.0) };
    }
}
