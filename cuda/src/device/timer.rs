//! Time on a device, between two events of its stream.

use super::stream::Knows;
use super::{Device, Result};

impl Device {
    /// Seconds that the device took for what `work` starts on it. Waits for the end.
    pub fn seconds(&self, work: impl FnOnce()) -> Result<f64> {
        let start = self.checked(self.events.record(&self.stream, Knows::Time))?;
        work();
        let end = self.checked(self.events.record(&self.stream, Knows::Time))?;
        self.checked(end.wait())?;
        self.checked(end.seconds_since(&start))
    }
}
