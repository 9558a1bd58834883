//! Copies of the flight recorders in the run's directory: `hangs/START/rank-00003.json`. The ranks of a host are
//! written by whichever of them reports. A first copy asks the other hosts for theirs.
//!
//! A disk that does not answer must not hold up the report, so files are written and read by a thread of their own.

use engine::flight::Seen;
use engine::mpi::Comm;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often another host's request is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// The time that the disk has to take the copies of a host.
const WRITE: Duration = Duration::from_secs(2);

pub struct Copies {
    /// Of this start of the run.
    dir: PathBuf,
    /// Whether another host has asked, seen by a thread that looks for it; `None` on a single host.
    wanted: Option<Arc<AtomicBool>>,
    written: AtomicBool,
}

impl Copies {
    /// Collective.
    pub fn new(run: &Path, comm: &Comm) -> Copies {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let start = comm.broadcast_bytes(now.to_string().into_bytes());
        let dir = run.join("hangs").join(String::from_utf8_lossy(&start).into_owned());
        let wanted = (comm.split_node().size() < comm.size()).then(|| look_for(&dir));
        Copies { dir, wanted, written: AtomicBool::new(false) }
    }

    /// Whether another host has asked for copies that this rank has not written.
    pub fn are_wanted(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| wanted.load(Relaxed)) && !self.written.load(Relaxed)
    }

    /// Writes the ranks of this host, for as long as the disk takes no longer than [`WRITE`].
    pub fn write(&self, seen: &[Seen]) {
        let (dir, seen) = (self.dir.clone(), seen.to_vec());
        let written = within(WRITE, move || write_all(&dir, &seen).is_ok());
        self.written.store(written == Some(true), Relaxed);
    }

    /// The ranks that all hosts have written, once they are all there or the time is over.
    pub fn gather(&self, ranks: usize, time: Duration) -> Vec<Seen> {
        let start = Instant::now();
        loop {
            let dir = self.dir.clone();
            let seen = within(WRITE, move || read_all(&dir)).unwrap_or_default();
            if seen.len() >= ranks || start.elapsed() >= time {
                return seen;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Takes the copies back: the run goes on.
    pub fn remove(&self) {
        let dir = self.dir.clone();
        within(WRITE, move || std::fs::remove_dir_all(&dir).is_ok());
        self.written.store(false, Relaxed);
    }

    /// Where the copies are, if the disk took them.
    pub fn place(&self) -> Option<String> {
        self.written.load(Relaxed).then(|| self.dir.display().to_string())
    }
}

/// A flag that is set while the folder exists. The thread ends with the process.
fn look_for(dir: &Path) -> Arc<AtomicBool> {
    let (dir, wanted) = (dir.to_path_buf(), Arc::new(AtomicBool::new(false)));
    let flag = wanted.clone();
    let look = move || {
        loop {
            flag.store(dir.exists(), Relaxed);
            std::thread::sleep(LOOK);
        }
    };
    // Without the thread this host does not answer others, and still reports itself.
    let _ = std::thread::Builder::new().name("hang-requests".into()).spawn(look);
    wanted
}

/// Runs `work` on a thread of its own; `None` where it takes longer, or no thread can be made.
fn within<T: Send + 'static>(time: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = channel();
    std::thread::Builder::new().spawn(move || done.send(work())).ok()?;
    wait.recv_timeout(time).ok()
}

fn write_all(dir: &Path, seen: &[Seen]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for one in seen {
        let path = dir.join(format!("rank-{:05}.json", one.snapshot.rank));
        let partial = path.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(one).expect("text and numbers are JSON"))?;
        std::fs::rename(&partial, &path)?;
    }
    Ok(())
}

fn read_all(dir: &Path) -> Vec<Seen> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    files.filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok()).collect()
}
