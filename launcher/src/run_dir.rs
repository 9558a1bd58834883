//! The run's directory: locked by rank 0 before anything in it is read or written, and cleaned of what dead processes
//! left. A second run on the directory is refused and changes nothing in it.

use engine::checkpoint;
use engine::error::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
/// The ending of a file that [`replace`] is writing.
const PARTIAL: &str = "partial";

/// A locked run directory. The lock ends with the process, however it ends.
pub struct RunDir {
    path: PathBuf,
    /// Whether this process made the directory.
    created: bool,
    _lock: File,
}

impl RunDir {
    /// Creates and locks the directory `path`; `name` is its name for messages, such as `checkpoint.dir`.
    pub fn lock(path: &Path, name: &str) -> Result<RunDir> {
        let refuse = |e| match Error::io(path, e) {
            Error::User(what) => Error::User(format!("{name} = {what}; name a directory that can be written")),
            run => run,
        };
        let created = !path.exists();
        fs::create_dir_all(path).map_err(refuse)?;
        let lock = File::create(path.join(LOCK)).map_err(refuse)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::user(format!(
                "{name} = {}: another run is using this directory; wait for it, or name another directory",
                path.display()
            ))),
            // Some network file systems have no locks.
            Err(TryLockError::Error(_)) | Ok(()) => Ok(RunDir { path: path.into(), created, _lock: lock }),
        }
    }

    /// Removes the unfinished files of dead processes, which may fill the disk that this run needs.
    pub fn clean(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))? {
            let path = entry.map_err(|e| Error::io(&self.path, e))?.path();
            if path.extension().is_some_and(|ending| ending == PARTIAL) {
                fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            }
        }
        checkpoint::clean(&self.path)
    }
}

impl Drop for RunDir {
    /// Removes the directory of a run that failed before it wrote anything.
    fn drop(&mut self) {
        let is_empty = || fs::read_dir(&self.path).is_ok_and(|entries| entries.count() == 1);
        if self.created && is_empty() {
            // At worst an empty directory stays.
            let _ = fs::remove_file(self.path.join(LOCK)).and_then(|()| fs::remove_dir(&self.path));
        }
    }
}

/// Writes a whole file in place of `path`, atomically: a reader finds the old or the new one. A write that fails
/// leaves the old file as it was, and nothing else.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{PARTIAL}"));
    let partial = PathBuf::from(partial);
    let written = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
    written.map_err(|e| {
        // The failure that is reported is the write's.
        let _ = fs::remove_file(&partial);
        Error::io(path, e)
    })
}
