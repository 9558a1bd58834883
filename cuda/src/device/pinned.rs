//! Pinned host memory, which the device copies from and to while the host continues, and the progress counter that the
//! device writes into it.

use super::stream::{Event, Stream};
use cudarc::driver::{DriverError, result, sys};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

/// The smallest block.
const SMALLEST: usize = 4096;
/// Larger blocks are multiples of it.
const LARGE: usize = 2 << 20;

/// A pool of pinned blocks: pinning memory is slow.
#[derive(Clone, Default)]
pub struct PinnedPool(Arc<Mutex<Lists>>);

#[derive(Default)]
struct Lists {
    free: Vec<Raw>,
    /// Blocks that the device reads until the event.
    busy: VecDeque<(Arc<Event>, Raw)>,
}

struct Raw {
    at: *mut u8,
    capacity: usize,
}

// SAFETY: plain memory of this process with one owner at a time.
unsafe impl Send for Raw {}
// SAFETY: it is only read through `&`.
unsafe impl Sync for Raw {}

/// A block of pinned memory. Dropping it returns it to the pool for immediate reuse.
pub struct Pinned {
    /// None once it has been returned.
    raw: Option<Raw>,
    pool: PinnedPool,
}

impl PinnedPool {
    /// A block of at least `len` bytes. There are few sizes, so that free blocks are likely to fit.
    pub fn take(&self, len: usize) -> Result<Pinned, DriverError> {
        let capacity = if len > LARGE { len.next_multiple_of(LARGE) } else { len.next_power_of_two().max(SMALLEST) };
        let mut lists = self.lists();
        while let Some((event, _)) = lists.busy.front()
            && event.is_past()?
        {
            let (_, raw) = lists.busy.pop_front().expect("the list is not empty");
            lists.free.push(raw);
        }
        let found = lists.free.iter().position(|raw| raw.capacity == capacity);
        let raw = match found {
            Some(i) => lists.free.swap_remove(i),
            // SAFETY: the call takes only a size; the last owner of the lists frees the block.
            None => Raw { at: unsafe { result::malloc_host(capacity, 0)? }.cast(), capacity },
        };
        Ok(Pinned { raw: Some(raw), pool: self.clone() })
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().expect("no thread panics while it holds this lock")
    }
}

impl Pinned {
    /// The whole block, which may be longer than requested.
    pub fn bytes(&self) -> &[u8] {
        let raw = self.raw();
        // SAFETY: the block is alive and has this capacity. It is initialized: the driver hands out zeroed pages, and
        // the device writes plain bytes.
        unsafe { std::slice::from_raw_parts(raw.at, raw.capacity) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let raw = self.raw();
        // SAFETY: as above, and this is the block's only owner.
        unsafe { std::slice::from_raw_parts_mut(raw.at, raw.capacity) }
    }

    /// Returns the block to the pool once the device has reached the event.
    pub fn busy_until(mut self, event: Arc<Event>) {
        let raw = self.raw.take().expect("a block is returned once");
        self.pool.lists().busy.push_back((event, raw));
    }

    fn raw(&self) -> &Raw {
        self.raw.as_ref().expect("a block is alive until it is dropped")
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.pool.lists().free.push(raw);
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        for raw in self.free.drain(..).chain(self.busy.drain(..).map(|(_, raw)| raw)) {
            // SAFETY: `take` allocated it; it is freed once, and the driver waits for copies in flight.
            _ = unsafe { result::free_host(raw.at.cast()) };
        }
    }
}

/// The progress of a stream. The device writes numbers, in stream order, into host memory, which outlives a fault and
/// which any thread may read.
#[derive(Clone)]
pub struct Progress(Arc<Cell>);

struct Cell {
    memory: Pinned,
    /// The memory's device address.
    at: sys::CUdeviceptr,
    enqueued: AtomicU32,
}

impl Progress {
    /// A counter that starts at 0.
    pub fn new(mut memory: Pinned) -> Result<Self, DriverError> {
        memory.bytes_mut()[..4].fill(0);
        let mut at = 0;
        // SAFETY: the block is pinned and lives as long as this; the call only returns its address.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut at, memory.bytes_mut().as_mut_ptr().cast(), 0) }.result()?;
        Ok(Progress(Arc::new(Cell { memory, at, enqueued: AtomicU32::new(0) })))
    }

    /// Enqueues `number`: the device writes it when the stream reaches this point.
    pub fn enqueue(&self, stream: &Stream, number: u32) -> Result<(), DriverError> {
        self.0.enqueued.store(number, Relaxed);
        // SAFETY: the cell is four bytes of pinned memory that live as long as the stream's owner.
        unsafe { sys::cuStreamWriteValue32_v2(stream.raw(), self.0.at, number, 0) }.result()
    }

    /// The last number that was enqueued.
    pub fn enqueued(&self) -> u32 {
        self.0.enqueued.load(Relaxed)
    }

    /// The last number that the device has reached.
    pub fn reached(&self) -> u32 {
        // SAFETY: four aligned bytes that the device may write at any time, read as volatile.
        unsafe { self.0.memory.bytes().as_ptr().cast::<u32>().read_volatile() }
    }

    /// Whether the device has not reached the last enqueued number.
    pub fn is_behind(&self) -> bool {
        self.reached() != self.enqueued()
    }
}
