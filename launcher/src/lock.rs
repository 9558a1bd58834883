//! The lock of a run's directory: a file with a line about the process that holds it, which that process locks and
//! touches every few seconds.
//!
//! The kernel ends a lock with its process, on this host and, where the file system passes locks on, for others. Where
//! it does not, or where a host is gone and its file server does not know, the touches tell whether the holder lives:
//! the lock of a dead one is taken over.

use crate::output::{say, to_stderr};
use engine::error::{Error, Result};
use engine::mpi::{end_process, host};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

const NAME: &str = "lock";
/// The time between two touches.
const TOUCH: Duration = Duration::from_secs(5);
/// The time without a touch after which a holder on another host counts as dead.
const SILENCE: Duration = Duration::from_secs(20);
/// Time that a network file system may take to show a file to another node.
const PATIENCE: Duration = Duration::from_secs(5);

/// A held lock. It ends with the process, however that ends.
pub struct Lock {
    path: PathBuf,
    /// The line about this process.
    owner: String,
    ended: Arc<AtomicBool>,
    file: File,
}

impl Lock {
    /// Takes the lock of `dir`; `name` is the directory's name for messages, such as `checkpoint.dir`.
    pub fn take(dir: &Path, name: &str) -> Result<Lock> {
        Lock::take_after(dir, name, SILENCE)
    }

    /// Takes over from a holder on another host after this time of silence.
    fn take_after(dir: &Path, name: &str, silence: Duration) -> Result<Lock> {
        let path = dir.join(NAME);
        let holder = line(&path);
        let mut file = open(&path)?;
        let is_locked = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        let is_elsewhere = host_of(&holder).is_some_and(|at| at != host());
        // Where a process has the file locked, that may be one of this host which waits for the same silence, and which
        // writes its own line after that.
        if is_elsewhere && !is_silent(&path, &holder, if is_locked { 2 * silence } else { silence })
            || is_locked && !is_elsewhere
        {
            return Err(in_use(dir, name, &holder));
        }
        if is_locked {
            // The file server still holds the lock of a host that is gone. A new file has none.
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
            file = open(&path)?;
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(in_use(dir, name, &line(&path)));
            }
        }
        if !holder.is_empty() {
            say!("note: {}: {holder}, is gone; this process takes over its lock", path.display());
        }
        let owner = format!("process {} on {} since {}", std::process::id(), host(), jiff::Timestamp::now());
        let lock = Lock { path, owner, ended: Arc::default(), file };
        // At once, so that others which wait for the same silence see it. A full disk is reported by `announce`.
        let _ = lock.write();
        Ok(lock)
    }

    fn write(&self) -> std::io::Result<()> {
        fs::write(&self.path, format!("{}\n", self.owner))
    }

    /// The line by which other ranks recognise the directory: see [`is_shared`].
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Writes the line into the file, closes it, so that a network file system shows it to other nodes, and begins to
    /// touch the file. A process that stood still for so long that another one took its lock over ends then: two that
    /// write would damage each other's files.
    pub fn announce(&self) -> Result<()> {
        self.write().map_err(|e| Error::io(&self.path, e))?;
        let (path, owner, ended) = (self.path.clone(), self.owner.clone(), self.ended.clone());
        let touch = move || {
            while !ended.load(Relaxed) {
                // A disk that fails is reported by whoever writes something else.
                let _ = OpenOptions::new().write(true).open(&path).and_then(|f| f.set_modified(SystemTime::now()));
                std::thread::sleep(TOUCH);
                let holder = line(&path);
                if !holder.is_empty() && holder != owner && !ended.load(Relaxed) {
                    to_stderr(&format!("{}: {holder}, has taken over this run; this process ends", path.display()));
                    end_process(1);
                }
            }
        };
        let made = std::thread::Builder::new().name("lock".into()).spawn(touch);
        made.map(drop).map_err(|e| Error::run(format!("a thread cannot be made: {e}; raise `ulimit -u`")))
    }

    /// Removes the file.
    pub fn remove(&self) -> std::io::Result<()> {
        fs::remove_file(&self.path)
    }
}

impl Drop for Lock {
    /// A file without a line has no holder that may have died.
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        let _ = self.file.set_len(0);
    }
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    file.map_err(|e| Error::io(path, e))
}

fn in_use(dir: &Path, name: &str, holder: &str) -> Error {
    let holder = if holder.is_empty() { String::new() } else { format!(" ({holder})") };
    Error::user(format!(
        "{name} = {}: another run is using this directory{holder}; wait for it, or name another directory",
        dir.display()
    ))
}

/// The host in a holder's line.
fn host_of(holder: &str) -> Option<&str> {
    holder.split_once(" on ")?.1.split_once(" since ").map(|(host, _)| host)
}

/// The line of the process that holds the lock; empty where there is none.
fn line(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).trim_end().to_string()
}

/// Whether the holder on another host gives no sign for this long.
fn is_silent(path: &Path, holder: &str, silence: Duration) -> bool {
    let seconds = silence.as_secs();
    say!("note: {} is held by {holder}; waiting up to {seconds} s for a sign of it", path.display());
    !changes(path, silence)
}

/// Whether the file at `path` is touched or written within this time.
fn changes(path: &Path, within: Duration) -> bool {
    // Opening a file makes a network file system ask for its times.
    let touched = || File::open(path).and_then(|file| file.metadata()?.modified()).ok();
    let (before, start) = ((touched(), line(path)), Instant::now());
    while start.elapsed() < within {
        std::thread::sleep(Duration::from_millis(200));
        if (touched(), line(path)) != before {
            return true;
        }
    }
    false
}

/// Whether `dir` is the directory whose lock `owner` holds on another node.
pub fn is_shared(dir: &Path, owner: &str) -> bool {
    let start = Instant::now();
    loop {
        if line(&dir.join(NAME)) == owner {
            return true;
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_is_refused_and_touched() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), "checkpoint.dir").unwrap();
        lock.announce().unwrap();
        assert!(is_shared(dir.path(), lock.owner()));
        let refused = Lock::take(dir.path(), "checkpoint.dir").err().unwrap().to_string();
        let holder = format!("(process {} on {} since ", std::process::id(), host());
        assert!(refused.contains(&holder), "{refused}");
        // The first touch may already have been.
        assert!(changes(&dir.path().join(NAME), 2 * TOUCH));
        drop(lock);
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).unwrap(), "");
        Lock::take(dir.path(), "checkpoint.dir").unwrap();
    }

    /// The holder is on another host: it is dead without a touch, and alive with one.
    #[test]
    fn the_lock_of_a_silent_host_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let silence = Duration::from_millis(900);
        fs::write(&path, "process 7 on gpu042 since 2026-11-30T01:02:03Z\n").unwrap();
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                OpenOptions::new().write(true).open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
            });
            Lock::take_after(dir.path(), "checkpoint.dir", silence).err().unwrap().to_string()
        });
        assert!(refused.contains("(process 7 on gpu042 since "), "{refused}");
        let lock = Lock::take_after(dir.path(), "checkpoint.dir", silence).unwrap();
        assert_eq!(line(&path), lock.owner());
    }

    /// Two processes that find the same silent holder: one of them takes over.
    #[test]
    fn a_silent_lock_is_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "process 7 on gpu042 since 2026-11-30T01:02:03Z\n").unwrap();
        let take = || Lock::take_after(dir.path(), "checkpoint.dir", Duration::from_millis(900));
        let taken = std::thread::scope(|scope| {
            let first = scope.spawn(take);
            std::thread::sleep(Duration::from_millis(100));
            let second = scope.spawn(take);
            [first, second].map(|thread| thread.join().unwrap().ok()).into_iter().flatten().count()
        });
        assert_eq!(taken, 1);
    }
}
