//! The slots of all ranks of a host, in memory that they share.

use super::ring::WORDS;
use super::snapshot::Snapshot;
use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::posix_fallocate;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

const BYTES: usize = WORDS * size_of::<u64>();

/// The slots of a host. The file has no name any more once all ranks have mapped it, so that nothing is left of it when
/// they end, however they end.
#[derive(Clone)]
pub struct SharedRings {
    map: Arc<MmapRaw>,
    slots: usize,
}

/// One rank's slot.
pub struct Slot {
    rings: SharedRings,
    index: usize,
}

impl SharedRings {
    /// Creates the file with a slot for each of `slots` ranks. Its space is reserved, since a map of a file that has
    /// none would fault on a full file system.
    pub fn create(path: &Path, slots: usize) -> io::Result<SharedRings> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let reserve = || {
            posix_fallocate(&file, 0, (slots * BYTES) as i64)?;
            SharedRings::map(&file, slots)
        };
        reserve().inspect_err(|_| {
            // The failure that is reported is the first one.
            let _ = std::fs::remove_file(path);
        })
    }

    /// Maps a file that [`SharedRings::create`] made with as many slots.
    pub fn open(path: &Path, slots: usize) -> io::Result<SharedRings> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < (slots * BYTES) as u64 {
            return Err(io::Error::other("the file is shorter than its slots"));
        }
        SharedRings::map(&file, slots)
    }

    fn map(file: &File, slots: usize) -> io::Result<SharedRings> {
        let map = MmapOptions::new().len(slots * BYTES).map_raw(file)?;
        Ok(SharedRings { map: Arc::new(map), slots })
    }

    pub fn len(&self) -> usize {
        self.slots
    }

    pub fn is_empty(&self) -> bool {
        self.slots == 0
    }

    pub fn slot(&self, index: usize) -> Slot {
        assert!(index < self.slots, "slot {index} of {}", self.slots);
        Slot { rings: self.clone(), index }
    }

    /// Slots of a single rank, for a host where there is no memory to share.
    pub fn alone() -> io::Result<SharedRings> {
        let map = MmapOptions::new().len(BYTES).map_anon()?;
        Ok(SharedRings { map: Arc::new(MmapRaw::from(map)), slots: 1 })
    }

    /// The records of the rank of this slot; `None` where no rank has taken it.
    pub fn read(&self, index: usize) -> Option<Snapshot> {
        Snapshot::read(self.slot(index).words())
    }
}

impl Slot {
    pub(super) fn words(&self) -> &[AtomicU64] {
        let start = self.rings.map.as_mut_ptr().wrapping_add(self.index * BYTES).cast::<AtomicU64>();
        // SAFETY: the map is at least `slots` times `BYTES` long, is aligned to a page and lives as long as `self`; its
        // space was reserved, and nobody shortens a file without a name. Every process uses the words as atomics only,
        // for which any bits are valid.
        unsafe { std::slice::from_raw_parts(start, WORDS) }
    }
}
