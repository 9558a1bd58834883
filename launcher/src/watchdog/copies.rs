//! Copies of the flight recorders in the run's directory, `hangs/START/rank-00003.json`: evidence for people, and
//! the way in which hosts learn of each other's ranks. A host that asks writes `request`; the others answer with
//! copies. The one that reports creates `reported`, since the ranks of others may live on for a moment.
//!
//! A disk that does not answer must not hold up the report, so files are written and read by threads of their own.

use super::decision::RankCopy;
use engine::mpi::Comm;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often the request of another host is looked for.
const LOOK: Duration = Duration::from_secs(1);
/// The time that the disk has to write or read the copies.
const DISK: Duration = Duration::from_secs(2);
const REQUEST: &str = "request";
/// The file of the host that has reported.
const REPORTED: &str = "reported";

pub struct Copies {
    /// The directory of this start of the run.
    dir: PathBuf,
    /// The last request, as a thread reads it; `None` on a single host.
    request: Option<Arc<Mutex<String>>>,
    /// The request that was answered last, or was this host's own.
    answered: String,
    written: bool,
}

impl Copies {
    /// Collective.
    pub fn new(run: &Path, comm: &Comm) -> Copies {
        let start = comm.broadcast_bytes((now() / 1_000_000_000).to_string().into_bytes());
        let dir = run.join("hangs").join(String::from_utf8_lossy(&start).into_owned());
        let several_hosts = comm.split_node().size() < comm.size();
        // Hosts may have different numbers of ranks.
        let request = (comm.max(several_hosts.into()) == 1).then(|| look_for(&dir));
        Copies { dir, request, answered: String::new(), written: false }
    }

    /// Whether the run has other hosts.
    pub fn are_exchanged(&self) -> bool {
        self.request.is_some()
    }

    /// Whether another host asks for copies.
    pub fn are_wanted(&self) -> bool {
        let request = self.request();
        !request.is_empty() && request != self.answered
    }

    fn request(&self) -> String {
        let text = |request: &Arc<Mutex<String>>| request.lock().expect("no thread panics with this lock").clone();
        self.request.as_ref().map_or(String::new(), text)
    }

    /// Writes the copies of this host, for as long as the disk takes no longer than [`DISK`].
    pub fn write(&mut self, copies: Vec<RankCopy>) {
        self.answered = self.request();
        let dir = self.dir.clone();
        self.written = within(DISK, move || write_all(&dir, &copies).is_ok()) == Some(true);
    }

    /// Asks the other hosts for copies.
    pub fn ask(&mut self) {
        let (dir, text) = (self.dir.clone(), format!("{} {}", std::process::id(), now()));
        self.answered = text.clone();
        within(DISK, move || replace(&dir.join(REQUEST), text.as_bytes()).is_ok());
    }

    /// Whether this host is the first to report the end of the run: not where another one has done so. A disk that does
    /// not answer keeps nobody from reporting.
    pub fn are_first_reported(&self) -> bool {
        let path = self.dir.join(REPORTED);
        let is_taken = move || {
            let created = std::fs::File::create_new(path);
            created.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists)
        };
        self.request.is_none() || within(DISK, is_taken) != Some(true)
    }

    /// The copies of all hosts.
    pub fn read(&self) -> Vec<RankCopy> {
        let dir = self.dir.clone();
        within(DISK, move || read_all(&dir)).unwrap_or_default()
    }

    /// Removes the copies of a run that goes on.
    pub fn remove(&mut self) {
        let dir = self.dir.clone();
        within(DISK, move || std::fs::remove_dir_all(&dir).is_ok());
        self.written = false;
    }

    /// The directory of the copies, if the disk took them.
    pub fn place(&self) -> Option<String> {
        self.written.then(|| self.dir.display().to_string())
    }
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// The text of the last request. The thread ends with the process.
fn look_for(dir: &Path) -> Arc<Mutex<String>> {
    let (path, request) = (dir.join(REQUEST), Arc::<Mutex<String>>::default());
    let found = request.clone();
    let look = move || {
        loop {
            if let Ok(text) = std::fs::read_to_string(&path) {
                *found.lock().expect("no thread panics with this lock") = text;
            }
            std::thread::sleep(LOOK);
        }
    };
    // Without the thread this host does not answer others, and still reports itself.
    let _ = std::thread::Builder::new().name("hang-requests".into()).spawn(look);
    request
}

/// Runs `work` on a thread of its own; `None` where it takes longer, or no thread can be made.
fn within<T: Send + 'static>(time: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, wait) = channel();
    std::thread::Builder::new().spawn(move || done.send(work())).ok()?;
    wait.recv_timeout(time).ok()
}

fn write_all(dir: &Path, copies: &[RankCopy]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for copy in copies {
        let text = serde_json::to_vec_pretty(copy).expect("text and numbers are JSON");
        replace(&dir.join(format!("rank-{:05}.json", copy.seen.snapshot.rank)), &text)?;
    }
    Ok(())
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path))
}

fn read_all(dir: &Path) -> Vec<RankCopy> {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    files.filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok()).collect()
}
