//! Asynchronous copies between host and device by way of pinned memory, and waiting for one while checking for
//! everything that may keep it from completing: the device's faults, NCCL's errors, and ranks that do not answer.

use super::memory::Block;
use super::rank::Rank;
use crate::device::{ContextHandle, Event, Pinned, Stream, Timing, describe};
use cudarc::driver::DriverError;
use engine::backend::{Elem, Fault, HostCopy};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a chunk of a copy to the device, and the most chunks in flight.
const CHUNK: usize = 16 << 20;
const CHUNKS: usize = 4;
/// Copies to the host of up to this size use the compute stream; larger ones a stream beside it.
const SMALL: usize = 64 << 10;

/// The time for which the host polls the event without a pause: steps of small models are short.
const SPIN: Duration = Duration::from_micros(200);
/// The pause between polls after that.
const PAUSE: Duration = Duration::from_micros(50);
/// The interval at which NCCL is asked for errors.
const CHECK: Duration = Duration::from_millis(20);
/// A device that has not moved for this long is looked at: the flight recorder gets the scope that it has reached.
const LOOK: Duration = Duration::from_secs(1);

/// Copies bytes into a block, in the order of the compute stream. The bytes are read before this returns.
pub(super) fn write<T: Elem>(rank: &Rank, bytes: &[u8], to: &Block<T>) -> Result<(), DriverError> {
    rank.before_change(to.bytes());
    let device = &rank.device;
    let mut in_flight: Vec<Arc<Event>> = Vec::new();
    for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
        if i >= CHUNKS {
            in_flight[i - CHUNKS].wait()?;
        }
        let mut pinned = device.pinned().take(chunk.len())?;
        pinned.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
        device.copy_in(&pinned, chunk.len(), to.at() + (i * CHUNK) as u64)?;
        let done = Arc::new(device.events().record(device.stream(), Timing::Disabled)?);
        pinned.busy_until(done.clone());
        in_flight.push(done);
    }
    Ok(())
}

/// A copy of a block's elements to the host.
pub struct Copied<T> {
    /// None if the device already had a fault, which is recorded.
    copy: Option<Copy>,
    len: usize,
    elem: PhantomData<fn() -> T>,
}

struct Copy {
    /// None once it has been given back.
    pinned: Option<Pinned>,
    done: Arc<Event>,
    /// The context, for threads that wait for the event.
    context: ContextHandle,
}

impl<T: Elem> Copied<T> {
    pub(super) fn start(rank: &Rank, block: &Block<T>) -> Self {
        let bytes = block.bytes();
        let len = (bytes.end - bytes.start) as usize / size_of::<T>();
        Copied { copy: rank.must(Copy::start(rank, bytes)), len, elem: PhantomData }
    }

    /// The elements, once the copy is done.
    pub(super) fn elements(self) -> Vec<T> {
        let copy = self.copy.expect("a copy that did not start is a fault");
        let pinned = copy.pinned.as_ref().expect("it is given back when the copy is dropped");
        bytemuck::pod_collect_to_vec(&pinned.bytes()[..self.len * size_of::<T>()])
    }
}

impl Copy {
    fn start(rank: &Rank, bytes: Range<u64>) -> Result<Self, DriverError> {
        let (device, len) = (&rank.device, (bytes.end - bytes.start) as usize);
        let mut pinned = device.pinned().take(len)?;
        let stream: &Stream = if len <= SMALL { device.stream() } else { &rank.side };
        if len > SMALL {
            stream.wait(&device.events().record(device.stream(), Timing::Disabled)?)?;
        }
        device.copy_out(bytes.start, &mut pinned, len, stream)?;
        let done = Arc::new(device.events().record(stream, Timing::Disabled)?);
        if len > SMALL {
            rank.add_read(bytes, done.clone());
        }
        Ok(Copy { pinned: Some(pinned), done, context: device.context() })
    }
}

impl Drop for Copy {
    /// A copy that nobody has waited for may still write into its memory.
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            pinned.busy_until(self.done.clone());
        }
    }
}

impl<T: Elem> HostCopy<T> for Copied<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        let Some(copy) = &self.copy else {
            return Err(Fault("a copy to the host was not started".into()));
        };
        let waited = copy.context.enter().and_then(|()| copy.done.wait());
        waited.map_err(|error| Fault(format!("a copy to the host: {}", describe(error))))?;
        Ok(self.elements())
    }
}

impl Rank {
    /// Blocks until the copy is done. The launcher's watchdog ends a run whose device makes no progress.
    pub(super) fn wait_for<T: Elem>(&self, copied: &Copied<T>) -> Result<(), Fault> {
        let Some(copy) = &copied.copy else {
            return self.first_fault();
        };
        let (start, reached) = (Instant::now(), || self.device.progress().reached());
        let (mut checked, mut progress, mut since, mut looked) = (start, reached(), start, false);
        while !copy.done.is_past().map_err(|error| self.fault(&self.device.fault(error)))? {
            if start.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            thread::sleep(PAUSE);
            if checked.elapsed() < CHECK {
                continue;
            }
            checked = Instant::now();
            self.first_fault()?;
            self.check_links()?;
            if reached() != progress {
                (progress, since) = (reached(), Instant::now());
            } else if since.elapsed() > LOOK && !looked {
                self.recorder.device_is_at(&self.device.reached_scope().unwrap_or_default());
                looked = true;
            }
        }
        if looked {
            self.recorder.device_is_at("");
        }
        Ok(())
    }

    /// NCCL's asynchronous errors, with the call during which one occurred.
    fn check_links(&self) -> Result<(), Fault> {
        self.links().iter().try_for_each(|link| {
            link.error().map_err(|what| {
                let call = link.pending.unfinished().unwrap_or_else(|| link.pending.name.clone());
                self.fault(&format!("{call}: {what}"))
            })
        })
    }
}
