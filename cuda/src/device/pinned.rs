//! Host memory that the device copies from and to by itself, while the host goes on.

use super::stream::Event;
use cudarc::driver::{DriverError, result};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

/// The smallest block.
const LEAST: usize = 4096;
/// Larger blocks are multiples of it.
const LARGE: usize = 2 << 20;

/// Blocks that are used again: pinning memory is slow.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<Lists>>);

#[derive(Default)]
struct Lists {
    free: Vec<Raw>,
    /// What the device still reads.
    busy: VecDeque<(Arc<Event>, Raw)>,
}

struct Raw {
    at: *mut u8,
    room: usize,
}

// SAFETY: plain memory of this process that one owner at a time uses.
unsafe impl Send for Raw {}
// SAFETY: through `&` it is only read.
unsafe impl Sync for Raw {}

/// A block of pinned memory; dropped, it may be used again at once.
pub struct Pinned {
    /// Taken when it is dropped.
    raw: Option<Raw>,
    home: Pins,
}

impl Pins {
    /// A block of at least `len` bytes. There are few sizes, so that one is soon used again.
    pub fn take(&self, len: usize) -> Result<Pinned, DriverError> {
        let room = if len > LARGE { len.next_multiple_of(LARGE) } else { len.next_power_of_two().max(LEAST) };
        let mut lists = self.lists();
        while let Some((event, _)) = lists.busy.front()
            && event.is_past()?
        {
            let (_, raw) = lists.busy.pop_front().expect("there is a first");
            lists.free.push(raw);
        }
        let found = lists.free.iter().position(|raw| raw.room == room);
        let raw = match found {
            Some(i) => lists.free.swap_remove(i),
            // SAFETY: nothing but a size is given; it is freed by the last owner of the lists.
            None => Raw { at: unsafe { result::malloc_host(room, 0)? }.cast(), room },
        };
        Ok(Pinned { raw: Some(raw), home: self.clone() })
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().expect("nothing panics while it holds the lists")
    }
}

impl Pinned {
    /// All of it, which may be more than was asked for.
    pub fn bytes(&self) -> &[u8] {
        let raw = self.raw();
        // SAFETY: the block has this room and lives; what it holds are plain bytes that the device wrote, or whatever
        // was there: the driver gives zeroed pages.
        unsafe { std::slice::from_raw_parts(raw.at, raw.room) }
    }

    /// As `bytes`, to be written to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let raw = self.raw();
        // SAFETY: as above, and this is the block's only owner.
        unsafe { std::slice::from_raw_parts_mut(raw.at, raw.room) }
    }

    /// It may be used again once the device has passed the event, and not before.
    pub fn busy_until(mut self, event: Arc<Event>) {
        let raw = self.raw.take().expect("a block is given back once");
        self.home.lists().busy.push_back((event, raw));
    }

    fn raw(&self) -> &Raw {
        self.raw.as_ref().expect("a block lives until it is dropped")
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.home.lists().free.push(raw);
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        for raw in self.free.drain(..).chain(self.busy.drain(..).map(|(_, raw)| raw)) {
            // SAFETY: made by `take`, freed once; the driver waits for copies under way.
            _ = unsafe { result::free_host(raw.at.cast()) };
        }
    }
}
