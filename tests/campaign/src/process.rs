//! Programs that run for a limited time, and the processes that they leave.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing is wrong, or what is.
pub type Verdict<T = ()> = Result<T, String>;

/// Returns from the function with a description of what is wrong, unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($holds:expr, $($wrong:tt)*) => {
        if !$holds {
            return Err(format!($($wrong)*));
        }
    };
}

/// The variable by which the processes of a site are found, whoever their parent is.
const MARK: &str = "CAMPAIGN_SITE";
/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// What `mpirun` of Open MPI 4.1 says before it waits for ever, though all ranks are gone: some 3 of 1,000 times that a
/// rank is killed while the two connect, in the first tenth of a second.
const LOST_RANK: &str = "PMIX ERROR: UNREACHABLE";

/// How a program ended.
pub struct Outcome {
    /// `None`: a signal killed it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn exits(self, codes: &[i32]) -> Verdict<Outcome> {
        let found = self.code.is_some_and(|code| codes.contains(&code));
        ensure!(found, "expected: exit code {codes:?}; seen: {:?}\n{}", self.code, self.stderr);
        Ok(self)
    }

    pub fn says(self, text: &str) -> Verdict<Outcome> {
        ensure!(self.stderr.contains(text), "expected: the message `{text}`; seen:\n{}", self.stderr);
        Ok(self)
    }

    /// The step after which the run continued.
    pub fn continued_after(&self) -> Option<u64> {
        let line = self.stderr.lines().find(|line| line.starts_with("continuing "))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// The newest step that was said to be saved.
    pub fn saved(&self) -> Option<u64> {
        let steps = self.stdout.lines().filter_map(|line| line.strip_prefix("saved step ")?.split(' ').next());
        steps.filter_map(|step| step.parse().ok()).max()
    }
}

/// A program of a site. Dropping it kills it with everything that it started.
pub struct Running {
    child: Child,
    site: PathBuf,
    output: [PathBuf; 2],
}

impl Running {
    /// Starts the command with files in the folder `site` for its output.
    pub fn start(command: &mut Command, site: &Path) -> Running {
        let n_runs = fs::read_dir(site.join("output")).expect("a site has a folder for output").count() / 2;
        let output = ["stdout", "stderr"].map(|name| site.join(format!("output/{n_runs}-{name}")));
        let [stdout, stderr] = output.each_ref().map(|path| File::create(path).expect("output can be written"));
        command.env(MARK, site).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Running { child, site: site.into(), output }
    }

    /// Waits for the end of the program and of everything that it started.
    pub fn end(mut self, limit: Duration) -> Verdict<Outcome> {
        let began = Instant::now();
        let ended = self.wait_until(limit, || false);
        let mut left = processes(&self.site);
        while !left.is_empty() && began.elapsed() < limit {
            std::thread::sleep(PAUSE);
            left = processes(&self.site);
        }
        let only_mpirun = left == [self.pid()];
        self.kill();
        let [stdout, stderr] = self
            .output
            .each_ref()
            .map(|path| String::from_utf8_lossy(&fs::read(path).expect("output can be read")).into_owned());
        if !ended && only_mpirun && stderr.contains(LOST_RANK) {
            return Ok(Outcome { code: None, stdout, stderr });
        }
        ensure!(ended, "expected: an end within {limit:?}; seen: none\n{stderr}");
        ensure!(left.is_empty(), "expected: no process after {limit:?}; seen: {left:?}\n{stderr}");
        for word in ["panicked", "Aborted", "Segmentation fault", "Bus error"] {
            ensure!(!stderr.contains(word), "expected: an ordinary end; seen: {word}\n{stderr}");
        }
        let code = self.child.wait().expect("a child can be waited for").code();
        Ok(Outcome { code, stdout, stderr })
    }

    /// Waits until the program has ended, `done` or the limit; returns whether it has ended.
    pub fn wait_until(&mut self, limit: Duration, mut done: impl FnMut() -> bool) -> bool {
        let began = Instant::now();
        while began.elapsed() < limit {
            if self.child.try_wait().expect("a child can be waited for").is_some() {
                return true;
            }
            if done() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    /// The program itself: `mpirun`.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The process of a rank, once it is the program.
    pub fn rank(&self, rank: usize) -> Option<i32> {
        let is_rank = |pid: &i32| {
            let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
            // Not `env` or a shell that has yet to become the program.
            let is_program = fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"swallow-engine\n");
            is_program && environment(*pid).is_some_and(|all| all.contains(&variable))
        };
        processes(&self.site).into_iter().find(is_rank)
    }

    /// Kills all processes of the site at once, as a power cut does.
    pub fn kill(&mut self) {
        processes(&self.site).into_iter().for_each(|pid| send(pid, Signal::SIGKILL));
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal; the process may have ended already.
pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).ok();
}

/// The processes that were started at the folder `site`.
fn processes(site: &Path) -> Vec<i32> {
    let mark = format!("{MARK}={}", site.display());
    let pids = fs::read_dir("/proc").expect("/proc can be read").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| environment(*pid).is_some_and(|all| all.contains(&mark))).collect()
}

/// The variables with which a process was started; none once it has ended.
fn environment(pid: i32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    Some(bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect())
}
