//! Whether the streams of a rank run beside each other, whatever order they are called in.
//!
//! The driver deals streams over hardware queues, by default eight. A receive or a wait on one stream of a queue holds
//! up what the others of that queue enqueue behind it. If that is the work that the sending rank waits for, both wait
//! for ever. Likewise a call of NCCL holds multiprocessors until its peers have come, and no kernel runs on them. So
//! each stream has a queue of its own, and the calls of all streams together leave enough multiprocessors free for any
//! kernel to start, or the run is refused. Then what is first in its stream always starts, and the order in which a
//! rank calls its communicators cannot stall it.

use super::rank::{Error, Rank};
use crate::device::{Event, Gate, Stream, Timing};
use crate::machine::Machine;
use cudarc::driver::DriverError;
use engine::layout::mesh::GroupKind;
use std::time::{Duration, Instant};

/// The most hardware queues that the driver makes.
const MOST: usize = 32;
/// Time for idle streams to reach an event, also where several ranks share a device.
const LIMIT: Duration = Duration::from_secs(10);

impl Rank {
    /// Checks that one call of each stream leaves processors to the kernels that it may wait for.
    pub fn check_processors(&self) -> Result<(), Error> {
        let lanes: Vec<GroupKind> = self.lanes().iter().map(|(lane, _)| *lane).collect();
        GroupKind::must_leave_processors(&lanes, &self.options.ctas, self.device.processors())
            .map_err(Error::NoProcessor)
    }

    /// Holds each stream in turn, and checks that all others reach an event meanwhile. Nothing else runs on the device.
    pub fn check_queues(&self) -> Result<(), Error> {
        self.first_fault()?;
        let lanes = self.lanes();
        let mut streams: Vec<&Stream> = vec![self.device.stream(), &self.side];
        streams.extend(lanes.iter().map(|(_, stream)| &**stream));
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
