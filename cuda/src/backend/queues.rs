//! Whether the streams of a rank run beside each other. The driver deals streams over hardware queues, by default
//! eight. A receive or a wait on one stream of a queue holds up what the others of that queue enqueue behind it. If
//! that is the work that the sending rank waits for, both wait for ever. So each stream has a queue of its own, or the
//! run is refused.

use super::rank::{Error, Rank};
use crate::device::{Event, Gate, Stream, Timing};
use cudarc::driver::DriverError;
use std::time::{Duration, Instant};

/// The most hardware queues that the driver makes.
const MOST: usize = 32;
/// Time for idle streams to reach an event, also where several ranks share a device.
const LIMIT: Duration = Duration::from_secs(10);

impl Rank {
    /// Holds each stream in turn, and checks that all others reach an event meanwhile. Nothing else runs on the device.
    pub fn check_queues(&self) -> Result<(), Error> {
        self.first_fault()?;
        let lanes = self.lanes();
        let mut streams: Vec<&Stream> = vec![self.device.stream(), &self.side];
        streams.extend(lanes.iter().map(|lane| &**lane));
        for held in 0..streams.len() {
            let others = streams.iter().enumerate().filter(|(i, _)| *i != held).map(|(_, stream)| *stream);
            if !self.run_beside(streams[held], others).map_err(crate::device::Error::from)? {
                return Err(Error::SharedQueues { streams: streams.len(), most: MOST });
            }
        }
        Ok(())
    }

    /// Whether the streams reach an event while `held` waits.
    fn run_beside<'s>(&self, held: &Stream, others: impl Iterator<Item = &'s Stream>) -> Result<bool, DriverError> {
        let mut gate = Gate::new(self.device.pinned().take(size_of::<u32>())?)?;
        gate.hold(held)?;
        let record = |stream: &Stream| self.device.events().record(stream, Timing::Disabled);
        let events: Vec<Event> = others.map(record).collect::<Result<_, _>>()?;
        let start = Instant::now();
        let mut passed = 0;
        while passed < events.len() && start.elapsed() < LIMIT {
            match events[passed].is_past()? {
                true => passed += 1,
                false => std::thread::yield_now(),
            }
        }
        gate.open();
        held.synchronize()?;
        Ok(passed == events.len())
    }
}
