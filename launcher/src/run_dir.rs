//! The run's directory: locked by rank 0 before anything in it is read or written, and cleaned of what dead processes
//! left. A second run on the directory is refused and changes nothing in it.

use engine::checkpoint;
use engine::error::{Error, Result};
use engine::mpi::host;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LOCK: &str = "lock";
/// Time that a network file system may take to show a file to another node.
const PATIENCE: Duration = Duration::from_secs(5);
/// The ending of a file that [`replace`] is writing.
const PARTIAL: &str = "partial";

/// A locked run directory. The lock ends with the process, however it ends.
pub struct RunDir {
    path: PathBuf,
    /// Whether this process made the directory.
    created: bool,
    /// The line in the lock's file, of this process alone.
    owner: String,
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
        if created {
            // So that the directory outlasts a power cut. Some file systems cannot, and the run goes on.
            let _ = File::open(path.join("..")).and_then(|parent| parent.sync_all());
        }
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK));
        let lock = open().map_err(refuse)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::user(format!(
                "{name} = {}: another run is using this directory; wait for it, or name another directory",
                path.display()
            ))),
            // Some network file systems have no locks.
            Err(TryLockError::Error(_)) | Ok(()) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let owner = format!("process {} on {} since {:?}\n", std::process::id(), host(), now);
                Ok(RunDir { path: path.into(), created, owner, _lock: lock })
            }
        }
    }

    /// The line by which other ranks recognise the directory: see [`is_shared`].
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Writes that line into the lock's file, and closes it, so that a network file system shows it to other nodes.
    pub fn announce(&self) -> Result<()> {
        let path = self.path.join(LOCK);
        fs::write(&path, &self.owner).map_err(|e| Error::io(&path, e))
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
            let _ = fs::remove_file(self.path.join(LOCK)).and_then(|()| fs::remove_dir(&self.path));
        }
    }
}

/// Whether `path` is the directory that `owner` has locked on another node.
pub fn is_shared(path: &Path, owner: &str) -> bool {
    let start = Instant::now();
    loop {
        if fs::read_to_string(path.join(LOCK)).is_ok_and(|line| line == owner) {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
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
