//! Copies between the host and the device that the host does not wait for, by way of pinned memory.

use super::memory::Block;
use super::rank::Rank;
use crate::device::{Current, Event, Knows, Pinned, Stream, said};
use cudarc::driver::DriverError;
use engine::backend::{Elem, Fault, HostCopy};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a copy to the device that are pinned at once.
const PIECE: usize = 16 << 20;
/// Pieces that may be under way.
const PIECES: usize = 4;
/// Copies to the host up to this size go along the compute stream; larger ones beside it.
const SMALL: usize = 64 << 10;

/// Copies bytes into a block, in the order of the compute stream. They are read before this returns.
pub(super) fn write<T: Elem>(rank: &Rank, bytes: &[u8], to: &Block<T>) -> Result<(), DriverError> {
    rank.before_change(to);
    let device = &rank.device;
    let mut under_way: Vec<Arc<Event>> = Vec::new();
    for (i, piece) in bytes.chunks(PIECE).enumerate() {
        if i >= PIECES {
            under_way[i - PIECES].wait()?;
        }
        let mut pinned = device.pins().take(piece.len())?;
        pinned.bytes_mut()[..piece.len()].copy_from_slice(piece);
        device.copy_in(&pinned, piece.len(), to.at() + (i * PIECE) as u64)?;
        let done = Arc::new(device.events().record(device.stream(), Knows::Order)?);
        pinned.busy_until(done.clone());
        under_way.push(done);
    }
    Ok(())
}

/// What a block held, on its way to the host.
pub struct Fetch<T> {
    /// Nothing where the device had a fault already, which is noted.
    coming: Option<Coming>,
    len: usize,
    elem: PhantomData<fn() -> T>,
}

struct Coming {
    pinned: Pinned,
    done: Arc<Event>,
    /// For threads that wait.
    context: Current,
}

impl<T: Elem> Fetch<T> {
    pub(super) fn start(rank: &Rank, block: &Block<T>) -> Self {
        let bytes = block.bytes();
        let len = (bytes.end - bytes.start) as usize / size_of::<T>();
        Fetch { coming: rank.must(Coming::start(rank, bytes)), len, elem: PhantomData }
    }

    /// Where it is on the device's way; None where it never comes.
    pub(super) fn done(&self) -> Option<&Event> {
        self.coming.as_ref().map(|coming| &*coming.done)
    }

    /// What came, once it is here.
    pub(super) fn here(self) -> Vec<T> {
        let coming = self.coming.expect("a copy that never started is a fault");
        let bytes = &coming.pinned.bytes()[..self.len * size_of::<T>()];
        bytemuck::pod_collect_to_vec(bytes)
    }
}

impl Coming {
    fn start(rank: &Rank, bytes: Range<u64>) -> Result<Self, DriverError> {
        let (device, len) = (&rank.device, (bytes.end - bytes.start) as usize);
        let mut pinned = device.pins().take(len)?;
        let stream: &Stream = if len <= SMALL { device.stream() } else { &rank.side };
        if len > SMALL {
            stream.wait(&device.events().record(device.stream(), Knows::Order)?)?;
        }
        device.copy_out(bytes.start, &mut pinned, len, stream)?;
        let done = Arc::new(device.events().record(stream, Knows::Order)?);
        if len > SMALL {
            rank.reads.add(bytes, done.clone());
        }
        Ok(Coming { pinned, done, context: device.context() })
    }
}

impl<T: Elem> HostCopy<T> for Fetch<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        let Some(coming) = &self.coming else {
            return Err(Fault("a copy to the host that was not started".into()));
        };
        let passed = coming.context.enter().and_then(|()| coming.done.wait());
        passed.map_err(|error| Fault(format!("a copy to the host: {}", said(error))))?;
        Ok(self.here())
    }
}
