//! Starting the program, alone or under `mpirun`, so that nothing outlives its test.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No run of these tests takes longer on two busy cores: one that does hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// The variable that names the program where the tests were copied to another machine; there the checkout is the
/// current folder.
const PROGRAM: &str = "SWALLOW_ENGINE";

/// The program that cargo built with these tests, or the one that was copied with them.
pub fn program() -> PathBuf {
    std::env::var_os(PROGRAM).map_or_else(|| env!("CARGO_BIN_EXE_swallow-engine").into(), absolute)
}

/// The checkout of these tests.
pub fn checkout() -> PathBuf {
    match std::env::var_os(PROGRAM) {
        None => env!("CARGO_MANIFEST_DIR").into(),
        Some(_) => std::env::current_dir().unwrap(),
    }
}

/// An absolute path: the program is also started from other folders.
fn absolute(path: OsString) -> PathBuf {
    std::path::absolute(path).unwrap()
}

/// Has Open MPI start and end programs on this machine without delay. By default it looks for networks, which takes
/// 0.2 s a start, and waits for one or two seconds before it kills the other ranks of a run that was aborted.
pub fn locally(mut command: Command) -> Command {
    command.env("OMPI_MCA_pml", "ob1").env("OMPI_MCA_odls_base_sigkill_timeout", "0");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// The program as one rank.
pub fn engine() -> Command {
    locally(Command::new(program()))
}

/// `mpirun` without a program yet, allowed to start more ranks than there are cores.
pub fn mpirun_alone() -> Command {
    let mut command = locally(Command::new("mpirun"));
    command.arg("--oversubscribe");
    command
}

/// The program on `ranks` ranks.
pub fn mpirun(ranks: usize) -> Command {
    let mut command = mpirun_alone();
    command.args(["-n", &ranks.to_string()]).arg(program());
    command
}

/// Set in the processes of a test that starts its own program again, to a folder that they share.
const INSIDE: &str = "TEST_INSIDE";

/// Whether this process was started by a test, to run its body.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// This program, running the test `test` alone, by its whole name, `blas::products`.
pub fn this_test(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(only(test)).env(INSIDE, "");
    command
}

/// The same on `ranks` ranks. MPI starts once in a process, so tests that call it have their ranks in processes of
/// their own.
pub fn mpirun_this_test(ranks: usize, test: &str) -> Command {
    let mut command = mpirun_alone();
    command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().unwrap()).args(only(test)).env(INSIDE, "");
    command
}

fn only(test: &str) -> [&str; 4] {
    [test, "--exact", "--nocapture", "--test-threads=1"]
}

/// Runs the body of the test `test` on `ranks` ranks, with a folder that they share.
#[track_caller]
pub fn on_ranks(test: &str, ranks: usize, body: impl FnOnce(&Path)) {
    if let Some(shared) = std::env::var_os(INSIDE) {
        return body(shared.as_ref());
    }
    let shared = tempfile::tempdir().unwrap();
    let outcome = finish(mpirun_this_test(ranks, test).env(INSIDE, shared.path())).succeeded();
    let passed = outcome.stdout.matches("1 passed").count();
    assert_eq!(passed, ranks, "ranks that know a test by the name {test}: {}", outcome.stdout);
}

/// Exit status and output of a run.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The run must have succeeded.
    #[track_caller]
    pub fn succeeded(self) -> Outcome {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.stdout, self.stderr);
        self
    }

    /// The run must have exited with `code`, printed all of `needles` on standard error, and not panicked.
    #[track_caller]
    pub fn refused(self, code: i32, needles: &[&str]) -> Outcome {
        assert_eq!(self.status.code(), Some(code), "{}\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for needle in needles {
            assert!(self.stderr.contains(needle), "no `{needle}` in: {}", self.stderr);
        }
        self
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: &mut Command) -> Outcome {
    Running::start(command).outcome()
}

/// Runs a command that works for minutes, on a machine that other tests use too, to its end.
#[track_caller]
pub fn finish_long(command: &mut Command) -> Outcome {
    let mut running = Running::start(command);
    running.limit = 5 * LIMIT;
    running.outcome()
}

/// A command that is running. Dropping it kills it with everything that it started.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    limit: Duration,
}

impl Running {
    /// Starts the command with files for its output: unlike a pipe that nobody reads, they never fill up.
    pub fn start(command: &mut Command) -> Running {
        let file = || tempfile::tempfile().unwrap();
        let (stdout, stderr) = (file(), file());
        command.stdin(Stdio::null()).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Running { child, stdout, stderr, limit: LIMIT }
    }

    /// Waits for the end; a run that hangs is killed and fails the test.
    #[track_caller]
    pub fn outcome(mut self) -> Outcome {
        let (ended, limit) = (self.wait_until(|_| false), self.limit);
        let [stdout, stderr] = [&mut self.stdout, &mut self.stderr].map(|f| {
            let mut text = Vec::new();
            f.rewind().and_then(|()| f.read_to_end(&mut text)).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let status = ended.unwrap_or_else(|| panic!("no end in {limit:?}\n{stdout}\n{stderr}"));
        Outcome { status, stdout, stderr }
    }

    /// The text that the command has written to standard error so far.
    pub fn stderr(&self) -> String {
        let mut text = vec![0; self.stderr.metadata().unwrap().len() as usize];
        // At a position, since the command shares the file's own.
        self.stderr.read_exact_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until `done`, the end of the command (then it returns the status), or the limit.
    pub fn wait_until(&mut self, mut done: impl FnMut(&Running) -> bool) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < self.limit {
            match self.child.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if done(self) => return None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        None
    }

    /// The process ids of the ranks: the command itself, or those that `mpirun` started.
    pub fn ranks(&self) -> Vec<i32> {
        let exe = std::fs::canonicalize(program()).unwrap();
        let runs_it = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|e| e == exe);
        self.family().into_iter().filter(runs_it).collect()
    }

    /// Kills the command and everything that it started, as a power cut would.
    pub fn kill(&mut self) {
        self.family().into_iter().for_each(kill_process);
        self.child.wait().unwrap();
    }

    /// This process and its descendants.
    pub fn family(&self) -> Vec<i32> {
        let parents = parents();
        let mut family = vec![self.child.id() as i32];
        let mut at = 0;
        while at < family.len() {
            let parent = family[at];
            family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        family
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.kill();
        }
    }
}

/// Sends SIGKILL; the process may have ended already.
pub fn kill_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// Every process of this machine with its parent.
fn parents() -> Vec<(i32, i32)> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| {
        // The format is `pid (name) state parent ...`; the name may contain parentheses.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    })
    .collect()
}
