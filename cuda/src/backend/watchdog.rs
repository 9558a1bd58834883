//! A thread that sees a device stand still while the host cannot look: a driver takes about a thousand launches, and then
//! the call for the next one waits with them; and NCCL may wait inside a call for ranks that it has yet to connect.

use super::flights::{Flights, first_unfinished};
use crate::device::Progress;
use engine::mpi::{end_process, host};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

const ROUND: Duration = Duration::from_millis(250);
/// Beyond patience: a host that is not caught in a call speaks first, and ends all ranks in an orderly way.
const GRACE: Duration = Duration::from_secs(5);
/// Beyond that: ranks that wait for each other leave the word to the first.
const WORD: Duration = Duration::from_secs(4);

/// The communicators that a rank has joined.
pub(super) type Joined = Arc<Mutex<Vec<Weak<Flights>>>>;

/// Watches until it is dropped.
pub(super) struct Watchdog {
    _end: Sender<()>,
}

impl Watchdog {
    /// Of the device whose progress this is, and which is rank `rank`'s.
    pub fn start(progress: Progress, joined: Joined, rank: usize, patience: Duration) -> Watchdog {
        let (end, ended) = channel();
        let limit = patience + GRACE + if rank == 0 { Duration::ZERO } else { WORD };
        std::thread::spawn(move || watch(&progress, &joined, rank, limit, &ended));
        Watchdog { _end: end }
    }
}

fn watch(progress: &Progress, joined: &Joined, rank: usize, limit: Duration, ended: &Receiver<()>) {
    let (mut last, mut since) = (progress.now(), Instant::now());
    while ended.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
        if progress.now() != last || !progress.is_behind() {
            (last, since) = (progress.now(), Instant::now());
        }
        // An idle device says nothing where the host is caught in a call of NCCL's.
        let inside = flights(joined).iter().filter_map(|flights| flights.inside()).map(|(since, _)| since).min();
        let waited = since.elapsed().max(inside.map_or(Duration::ZERO, |since| since.elapsed()));
        if waited > limit {
            say(joined, rank, waited);
            end_process(1);
        }
    }
}

fn flights(joined: &Joined) -> Vec<Arc<Flights>> {
    joined.lock().expect("nothing panics while it holds the list").iter().filter_map(Weak::upgrade).collect()
}

/// In one write: the lines of ranks that speak together do not mix.
fn say(joined: &Joined, rank: usize, waited: Duration) {
    let late = first_unfinished(flights(joined).iter().map(|flights| &**flights));
    let late = late.unwrap_or("the device does not come to the end of what it began".into());
    let line = format!("rank {rank} on {}: nothing has moved for {} s: {late}\n", host(), waited.as_secs());
    eprint!("{line}");
}
