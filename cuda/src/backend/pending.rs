//! NCCL calls that have not completed. Reporting them asks neither the driver nor NCCL, so that any thread can do it
//! while another is blocked inside of them.

use crate::device::{Progress, Stream};
use cudarc::driver::DriverError;
use engine::layout::mesh::GroupKind;
use engine::mpi::end_process;
use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

/// The calls of one communicator, in stream order.
pub(super) struct PendingCalls {
    /// The communicator's name, for messages.
    pub name: String,
    kind: GroupKind,
    /// Number of the last call that the stream has completed.
    completed: Progress,
    calls: Mutex<VecDeque<Call>>,
}

#[derive(Clone, Copy)]
struct Call {
    number: u32,
    what: &'static str,
    bytes: usize,
    since: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds this lock")
}

impl PendingCalls {
    pub fn new(name: String, kind: GroupKind, completed: Progress) -> Self {
        PendingCalls { name, kind, completed, calls: Mutex::default() }
    }

    /// Notes that the call of this number, one more than the last one's, was just enqueued on the stream.
    pub fn enqueued(&self, stream: &Stream, number: u32, what: &'static str, bytes: usize) -> Result<(), DriverError> {
        let mut calls = lock(&self.calls);
        let completed = self.completed.reached();
        while calls.front().is_some_and(|call| is_completed(call.number, completed)) {
            calls.pop_front();
        }
        calls.push_back(Call { number, what, bytes, since: Instant::now() });
        self.completed.enqueue(stream, number)
    }

    fn first(&self) -> Option<Call> {
        let (calls, completed) = (lock(&self.calls), self.completed.reached());
        calls.iter().find(|call| !is_completed(call.number, completed)).copied()
    }

    /// The first call that has not completed.
    pub fn unfinished(&self) -> Option<String> {
        let Call { what, bytes, .. } = self.first()?;
        Some(format!("{}: {what} of {bytes} bytes", self.name))
    }
}

/// "an all-reduce" -> "all-reduce".
pub(super) fn without_article(what: &'static str) -> &'static str {
    what.split_once(' ').map_or(what, |(_, name)| name)
}

/// Call numbers wrap around.
fn is_completed(number: u32, completed: u32) -> bool {
    completed.wrapping_sub(number) < u32::MAX / 2
}

/// The communicators that a rank has joined.
pub(super) type Joined = Arc<Mutex<Vec<Weak<PendingCalls>>>>;

/// A number that changes while the device works, and its first call that has not completed. Any thread may ask.
pub(super) fn probe(progress: &Progress, joined: &Joined) -> (u64, Option<(GroupKind, u32, &'static str)>) {
    let pending: Vec<Arc<PendingCalls>> = lock(joined).iter().filter_map(Weak::upgrade).collect();
    let calls = pending.iter().map(|calls| u64::from(calls.completed.reached()));
    let done = calls.fold(u64::from(progress.reached()), |sum, reached| sum.wrapping_mul(31).wrapping_add(reached));
    // The others wait behind the call that was enqueued first.
    let first = pending.iter().filter_map(|calls| Some((calls.kind, calls.first()?)));
    let first = first.min_by_key(|(_, call)| call.since);
    (done, first.map(|(kind, call)| (kind, call.number, without_article(call.what))))
}

/// A deadline, met when this is dropped.
pub(super) struct Deadline {
    _met: Sender<()>,
}

impl Deadline {
    /// Prints the line and ends the process unless the deadline is met in time.
    pub fn start(time: Duration, line: String) -> Deadline {
        let (met, wait) = channel::<()>();
        let wait = move || {
            if wait.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                engine::stderr::print(line.trim_end());
                end_process(1);
            }
        };
        // A process that cannot have one more thread has no deadline.
        let _ = std::thread::Builder::new().name("deadline".into()).spawn(wait);
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
