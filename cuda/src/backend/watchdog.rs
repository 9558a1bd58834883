//! NCCL calls that have not completed, and the threads that end a process which hangs. Reporting a call asks neither
//! the driver nor NCCL, so any thread can do it while another is blocked inside of them.

use crate::device::{Progress, Stream};
use cudarc::driver::DriverError;
use engine::mpi::{end_process, host};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// The interval of the watchdog's checks.
const INTERVAL: Duration = Duration::from_millis(250);
/// Added to the timeout: a host that is not blocked in a call reports first, and ends all ranks in an orderly way.
const GRACE: Duration = Duration::from_secs(5);
/// Added on ranks other than 0, so that only the first of several ranks that wait for each other reports.
const OTHER_RANKS: Duration = Duration::from_secs(4);

/// The calls of one communicator, in stream order.
pub(super) struct PendingCalls {
    /// The communicator's name, for messages.
    pub name: String,
    /// Number of the last call that the stream has completed.
    completed: Progress,
    calls: Mutex<VecDeque<Call>>,
    /// The call that the host is in. NCCL may block there until all ranks are connected.
    host_call: Mutex<Option<(Instant, String)>>,
}

struct Call {
    number: u32,
    what: &'static str,
    bytes: usize,
    since: Instant,
}

/// Held until the host returns from a call.
pub(super) struct HostCall<'a>(&'a PendingCalls);

impl Drop for HostCall<'_> {
    fn drop(&mut self) {
        *lock(&self.0.host_call) = None;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this lock")
}

impl PendingCalls {
    pub fn new(name: String, completed: Progress) -> Self {
        PendingCalls { name, completed, calls: Mutex::default(), host_call: Mutex::default() }
    }

    /// Notes that the host enters a call.
    pub fn enter(&self, what: &'static str, bytes: usize) -> HostCall<'_> {
        *lock(&self.host_call) = Some((Instant::now(), format!("{}: {what} of {bytes} bytes", self.name)));
        HostCall(self)
    }

    /// The call that the host is in, and since when.
    fn host_call(&self) -> Option<(Instant, String)> {
        lock(&self.host_call).clone()
    }

    /// Notes that a call was just enqueued on the stream.
    pub fn enqueued(&self, stream: &Stream, what: &'static str, bytes: usize) -> Result<(), DriverError> {
        let number = self.completed.enqueued().wrapping_add(1);
        let mut calls = lock(&self.calls);
        let completed = self.completed.reached();
        while calls.front().is_some_and(|call| is_completed(call.number, completed)) {
            calls.pop_front();
        }
        calls.push_back(Call { number, what, bytes, since: Instant::now() });
        self.completed.enqueue(stream, number)
    }

    /// The first call that has not completed, and when it was enqueued.
    pub fn unfinished(&self) -> Option<(Instant, String)> {
        if let Some(call) = self.host_call() {
            return Some(call);
        }
        let (calls, completed) = (lock(&self.calls), self.completed.reached());
        let Call { what, bytes, since, .. } = calls.iter().find(|call| !is_completed(call.number, completed))?;
        Some((*since, format!("{}: {what} of {bytes} bytes", self.name)))
    }
}

/// Call numbers wrap around.
fn is_completed(number: u32, completed: u32) -> bool {
    completed.wrapping_sub(number) < u32::MAX / 2
}

/// The unfinished call that was enqueued first, over several communicators: the others wait for it.
pub(super) fn first_unfinished<'a>(all: impl Iterator<Item = &'a PendingCalls>) -> Option<String> {
    let (since, what) = all.filter_map(PendingCalls::unfinished).min_by_key(|(since, _)| *since)?;
    let seconds = since.elapsed().as_secs();
    Some(format!("{what}, started {seconds} s ago, has not completed; another rank has not reached it or has died"))
}

/// The communicators that a rank has joined.
pub(super) type Joined = Arc<Mutex<Vec<Weak<PendingCalls>>>>;

/// A thread that ends the process when the device makes no progress while the host is blocked: a driver's queue holds
/// about a thousand launches, and the next launch blocks behind them; and NCCL may block in a call until all ranks are
/// connected. It runs until this is dropped.
pub(super) struct Watchdog {
    _end: Sender<()>,
}

impl Watchdog {
    /// Watches the device with this progress, which belongs to rank `rank`.
    pub fn start(progress: Progress, joined: Joined, rank: usize, timeout: Duration) -> Watchdog {
        let (end, ended) = channel();
        let limit = timeout + GRACE + if rank == 0 { Duration::ZERO } else { OTHER_RANKS };
        std::thread::spawn(move || watch(&progress, &joined, rank, limit, &ended));
        Watchdog { _end: end }
    }
}

fn watch(progress: &Progress, joined: &Joined, rank: usize, limit: Duration, ended: &Receiver<()>) {
    let (mut last, mut since) = (progress.reached(), Instant::now());
    while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
        if progress.reached() != last || !progress.is_behind() {
            (last, since) = (progress.reached(), Instant::now());
        }
        // A host that is blocked in an NCCL call may have left the device idle.
        let blocked = pending(joined).iter().filter_map(|calls| calls.host_call()).map(|(since, _)| since).min();
        let waited = since.elapsed().max(blocked.map_or(Duration::ZERO, |since| since.elapsed()));
        if waited > limit {
            report(joined, rank, waited);
            end_process(1);
        }
    }
}

fn pending(joined: &Joined) -> Vec<Arc<PendingCalls>> {
    lock(joined).iter().filter_map(Weak::upgrade).collect()
}

/// Prints in one write, so that lines of several ranks do not mix.
fn report(joined: &Joined, rank: usize, waited: Duration) {
    let late = first_unfinished(pending(joined).iter().map(|calls| &**calls));
    let late = late.unwrap_or("the device does not complete the work enqueued on it".into());
    let line = format!("rank {rank} on {}: no progress for {} s: {late}\n", host(), waited.as_secs());
    eprint!("{line}");
}

/// A deadline, met when this is dropped.
pub(super) struct Deadline {
    _met: Sender<()>,
}

impl Deadline {
    /// Prints the line and ends the process unless the deadline is met in time.
    pub fn start(time: Duration, line: String) -> Deadline {
        let (met, wait) = channel::<()>();
        std::thread::spawn(move || {
            if wait.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                // One write, so that lines of several ranks do not mix.
                eprint!("{line}");
                end_process(1);
            }
        });
        Deadline { _met: met }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_numbers_keep_their_order_when_they_wrap() {
        for (number, completed, is) in
            [(1, 0, false), (1, 1, true), (1, 7, true), (0, u32::MAX, false), (u32::MAX, 3, true)]
        {
            assert_eq!(is_completed(number, completed), is, "{number} {completed}");
        }
    }
}
