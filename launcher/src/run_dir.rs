//! The run's directory: locked by rank 0 before anything in it is read or written, and cleaned of what dead processes
//! left. A second run on the directory is refused and changes nothing in it.

use crate::lock::Lock;
use engine::checkpoint;
use engine::error::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The ending of a file that [`replace`] is writing.
const PARTIAL: &str = "partial";

/// A locked run directory.
pub struct RunDir {
    path: PathBuf,
    /// Whether this process made the directory.
    created: bool,
    pub lock: Lock,
}

impl RunDir {
    /// Creates and locks the directory `path`; `name` is its name for messages, such as `checkpoint.dir`.
    pub fn lock(path: &Path, name: &str) -> Result<RunDir> {
        let refuse = |error| match error {
            Error::User(what) if !what.starts_with(name) => {
                Error::User(format!("{name} = {what}; name a directory that can be written"))
            }
            other => other,
        };
        let created = !path.exists();
        fs::create_dir_all(path).map_err(|e| refuse(Error::io(path, e)))?;
        if created {
            // So that the directory outlasts a power cut. Some file systems cannot, and the run goes on.
            let _ = File::open(path.join("..")).and_then(|parent| parent.sync_all());
        }
        let lock = Lock::take(path, name).map_err(refuse)?;
        Ok(RunDir { path: path.into(), created, lock })
    }

    /// Removes the unfinished files of dead processes, which may fill the disk that this run needs.
    pub fn clean(&self) -> Result<()> {
        remove_partial(&self.path)?;
        let traces = self.path.join("traces");
        if traces.is_dir() {
            remove_partial(&traces)?;
        }
        checkpoint::clean(&self.path)
    }
}

fn remove_partial(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        if path.extension().is_some_and(|ending| ending == PARTIAL) {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

impl Drop for RunDir {
    /// Removes the directory of a run that failed before it wrote anything.
    fn drop(&mut self) {
        let is_empty = || fs::read_dir(&self.path).is_ok_and(|entries| entries.count() == 1);
        if self.created && is_empty() {
            // At worst an empty directory stays.
            let _ = self.lock.remove().and_then(|()| fs::remove_dir(&self.path));
        }
    }
}

/// Writes a whole file in place of `path`, atomically: a reader finds the old or the new one, also after a power cut. A
/// write that fails leaves the old file as it was, and nothing else.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{PARTIAL}"));
    let partial = PathBuf::from(partial);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        // Before the name: after a power cut some file systems have the new name, but not yet the bytes.
        file.sync_all()?;
        fs::rename(&partial, path)?;
        File::open(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|e| {
        // The failure that is reported is the write's.
        let _ = fs::remove_file(&partial);
        Error::io(path, e)
    })
}
