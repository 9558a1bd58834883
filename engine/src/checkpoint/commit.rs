//! Rank 0's part of a save, on a thread of its own: what led to the checkpoint is flushed, the manifest is written, the
//! directory gets its name, `latest` names it, and older ones are removed. Each of these steps is repeated by itself
//! while the disk fails in a way that may pass.

use super::manifest::Manifest;
use super::{Header, Retention, directory, shard};
use crate::error::{Error, Result};
use crate::retry::Retry;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A checkpoint whose pieces are on the disk.
pub(super) struct Commit {
    pub run: PathBuf,
    pub dir: PathBuf,
    pub header: Header,
    /// The checksums of the ranks' lists.
    pub shards: Vec<String>,
    /// Files that have every step up to this one.
    pub records: Vec<PathBuf>,
    pub retention: Retention,
    /// The step of a checkpoint that is still read.
    pub read: Option<u64>,
    pub retry: Retry,
}

impl Commit {
    /// Returns the bytes of all pieces.
    pub fn run(&self) -> Result<u64> {
        let Commit { run, dir, retry, .. } = self;
        let step = self.header.position.step;
        let bytes = self.publish().inspect_err(|_| discard(dir))?;
        retry.run(|| directory::set_latest(run, step)).inspect_err(|_| {
            // The next start would find a checkpoint that is newer than the one that `latest` names.
            if directory::latest_step(run).is_ok_and(|latest| latest != Some(step)) {
                let _ = directory::remove_whole(dir);
            }
        })?;
        if let Err(error) = retry.run(|| directory::prune(run, step, self.retention, self.read)) {
            // This checkpoint is complete all the same, and the next save tries the removal again.
            retry.tell(&format!("warning: an older checkpoint cannot be removed: {error}"));
        }
        Ok(bytes)
    }

    fn publish(&self) -> Result<u64> {
        let Commit { run, dir, retry, .. } = self;
        let (temporary, ranks) = (directory::temporary(dir), self.shards.iter().enumerate());
        self.records.iter().try_for_each(|record| flush(record, retry))?;
        // The run's directory has the names of the records and of the folder of checkpoints.
        retry.run(|| directory::sync(run))?;
        let shards = ranks.map(|(rank, checksum)| retry.run(|| shard::read_list(&temporary, rank, checksum)));
        let manifest = Manifest::new(&self.header, shards.collect::<Result<_>>()?)?;
        retry.run(|| {
            directory::write(&temporary.join("manifest.json"), &manifest.to_json())?;
            assert_eq!(Manifest::read(&temporary)?, manifest, "the manifest reads back as it was written");
            Ok(())
        })?;
        (0..self.shards.len()).try_for_each(|rank| retry.run(|| shard::remove_list(&temporary, rank)))?;
        directory::publish(dir, retry)?;
        Ok(manifest.bytes())
    }
}

/// Removes the files written so far. An error of this removal is not reported, since the save's own error is; the next
/// save tries again.
pub(super) fn discard(dir: &Path) {
    let _ = directory::remove(&directory::temporary(dir));
}

/// Flushes a file to which another thread appends lines. Linux counts pages that a flush has lost as clean, so after a
/// failure the whole lines are written again, in their places.
fn flush(path: &Path, retry: &Retry) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut has_failed = false;
    retry.run(|| {
        let file = File::options().read(true).write(has_failed).open(path).map_err(io)?;
        if has_failed {
            let text = fs::read(path).map_err(io)?;
            let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
            file.write_all_at(&text[..whole], 0).map_err(io)?;
        }
        file.sync_all().map_err(io).inspect_err(|_| has_failed = true)
    })
}
