//! Requests to stop a run before its last step: signals, and the time of `train.stop_before`.
//!
//! The signals are blocked in all threads and received by one thread, so that nothing has to be safe inside a handler.
//! The ranks agree between two steps whether one of them was asked ([`StopRequests::signal`]); the run then saves and
//! ends with exit code 0. A second signal ends the process at once.

use crate::output::to_stderr;
use crate::status::RunStatus;
use engine::error::{Error, Result};
use engine::mpi::{end_process, host};
use nix::sys::signal::{SigSet, Signal};
use report::records::status::State;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The signals that ask a run to stop.
const SIGNALS: [Signal; 5] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
/// Signals that follow one another faster come from one request: a batch system signals a job's processes directly and
/// through mpirun.
const SAME_REQUEST: Duration = Duration::from_millis(250);

/// The requests that this process has received.
#[derive(Clone)]
pub struct StopRequests {
    started: Instant,
    /// The number of the first signal; 0: none.
    signal: Arc<AtomicI32>,
    /// Set once the run has a directory: a second signal leaves its reason there.
    status: Arc<OnceLock<Arc<RunStatus>>>,
}

/// Why a run stops; the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A signal that this rank received.
    Signal(i32, usize),
    /// The next step would not fit before the time of `train.stop_before`.
    Time,
}

impl StopRequests {
    /// Starts to receive signals, for a process that was started at `started`. Call this before any other thread
    /// exists: threads inherit the mask of blocked signals.
    pub fn listen(started: Instant) -> Result<StopRequests> {
        let requests = StopRequests { started, signal: Arc::default(), status: Arc::default() };
        let signals: SigSet = SIGNALS.into_iter().filter(|&signal| !is_ignored(signal)).collect();
        let failed = |what: &str, why: String| Error::run(format!("receiving signals: {what}: {why}"));
        signals.thread_block().map_err(|e| failed("the signals cannot be blocked", e.to_string()))?;
        let thread = requests.clone();
        let spawned = std::thread::Builder::new().name("signals".into()).spawn(move || thread.receive(&signals));
        spawned.map_err(|e| failed("a thread cannot be made", format!("{e}; raise `ulimit -u`")))?;
        Ok(requests)
    }

    /// From now on a second signal writes why the run ended into its directory.
    pub fn report_to(&self, status: Arc<RunStatus>) {
        // A process trains once.
        let _ = self.status.set(status);
    }

    /// Time since the start of the process.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The first signal that this process has received.
    pub fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Relaxed)).filter(|&signal| signal != 0)
    }

    fn receive(&self, signals: &SigSet) {
        let mut first: Option<Instant> = None;
        while let Ok(signal) = signals.wait() {
            match first {
                None => {
                    first = Some(Instant::now());
                    self.signal.store(signal as i32, Relaxed);
                }
                Some(at) if at.elapsed() < SAME_REQUEST => {}
                Some(_) => self.end(signal),
            }
        }
    }

    /// A second signal: the process ends at once.
    fn end(&self, signal: Signal) -> ! {
        let status = self.status.get();
        let standing = status.map_or(String::new(), |status| format!("; {}", status.standing()));
        let reason = format!("a second signal ({signal}) ended the run at once on {}{standing}", host());
        // A disk that does not answer must not keep the process alive.
        let _ = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(Duration::from_secs(2));
            end_process(1)
        });
        to_stderr(&reason);
        if let Some(status) = status {
            status.end(State::Failed, &reason);
        }
        end_process(1)
    }
}

/// Whether this process was started with the signal ignored, as `nohup` does with SIGHUP. (A shell also ignores SIGINT
/// for commands in the background, which is not meant for a run.)
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    signal == Signal::SIGHUP && mask.is_some_and(|mask| mask >> (signal as i32 - 1) & 1 == 1)
}

impl StopReason {
    /// As a number of which the largest counts: 0 is no reason.
    pub fn encode(reason: Option<StopReason>) -> u64 {
        match reason {
            None => 0,
            Some(StopReason::Time) => 1 << 40,
            Some(StopReason::Signal(signal, rank)) => (signal as u64) << 24 | rank as u64,
        }
    }

    pub fn decode(number: u64) -> Option<StopReason> {
        match number {
            0 => None,
            n if n >> 40 == 1 => Some(StopReason::Time),
            n => Some(StopReason::Signal((n >> 24) as i32, (n & 0xff_ffff) as usize)),
        }
    }

    /// "SIGUSR1 was received by rank 3".
    pub fn describe(self) -> String {
        match self {
            StopReason::Time => "train.stop_before is near".to_string(),
            StopReason::Signal(signal, rank) => {
                let name = Signal::try_from(signal).map_or("a signal".to_string(), |signal| signal.to_string());
                format!("{name} was received by rank {rank}")
            }
        }
    }
}

/// Whether the time of `train.stop_before` is near: what remains does not hold another step and a save.
pub struct TimeLimit {
    limit: Duration,
    /// The time of the last step, from one decision to the next.
    step: Duration,
    last: Option<Duration>,
}

impl TimeLimit {
    pub fn new(limit: Duration) -> TimeLimit {
        TimeLimit { limit, step: Duration::ZERO, last: None }
    }

    /// To be asked before each step, `elapsed` after the start of the process; `save` is how long the last save took,
    /// zero before one was measured.
    pub fn is_near(&mut self, elapsed: Duration, save: Duration) -> bool {
        if let Some(last) = self.last.replace(elapsed) {
            self.step = elapsed.saturating_sub(last);
        }
        elapsed + self.step + save > self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_survives_its_number() {
        for reason in [None, Some(StopReason::Time), Some(StopReason::Signal(10, 0)), Some(StopReason::Signal(15, 999))]
        {
            assert_eq!(StopReason::decode(StopReason::encode(reason)), reason);
        }
        assert_eq!(StopReason::Signal(10, 3).describe(), "SIGUSR1 was received by rank 3");
    }

    #[test]
    fn the_time_limit_leaves_room_for_a_step_and_a_save() {
        let s = Duration::from_secs;
        let mut limit = TimeLimit::new(s(100));
        // Nothing is assumed of what was not measured.
        assert!(!limit.is_near(s(95), s(0)));
        let mut limit = TimeLimit::new(s(100));
        assert!(!limit.is_near(s(10), s(0)));
        assert!(!limit.is_near(s(30), s(20)));
        assert!(!limit.is_near(s(50), s(30)));
        assert!(limit.is_near(s(70), s(11)));
        assert!(!limit.is_near(s(79), s(11)), "steps became shorter");
        assert!(TimeLimit::new(s(100)).is_near(s(101), s(0)));
    }
}
