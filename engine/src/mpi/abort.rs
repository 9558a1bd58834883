//! How a rank that failed ends all ranks: ranks that fail with the same message print it once, and no rank is left
//! hanging.
//!
//! The other ranks may be anywhere, so every wait has a limit. A failing rank sends a hash of its message to all others
//! and receives theirs for a short time: if a lower rank has the same message, this rank does not print it.

use super::host;
use crate::flight::Recorder;
use mpi::ffi;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long ranks that fail together wait for each other's messages.
const LISTEN: Duration = Duration::from_secs(1);
/// After this time a rank ends itself, whatever MPI does.
const LIMIT: Duration = Duration::from_secs(10);
const TAG: i32 = 1;

/// The notice that a failing rank sends: its rank in the run, and the hash of its message.
type Notice = [u64; 2];

/// Prints the message of this rank unless a lower rank prints the same one, and ends all ranks. Main thread only.
pub(super) fn end_all(recorder: &Recorder, what: &str, print: impl FnOnce(), code: i32) -> ! {
    recorder.leave();
    let end_late = move || {
        std::thread::sleep(LIMIT);
        end_this(code)
    };
    // Where no thread can be made, MPI has to end the process.
    let _ = std::thread::Builder::new().spawn(end_late);
    let mine = [recorder.rank() as u64, hash(what)];
    let pause = if send_to_all(mine) { LISTEN } else { Duration::ZERO };
    let start = Instant::now();
    let printed_elsewhere = listen(mine, start + pause);
    if !printed_elsewhere {
        print();
    }
    // Ranks with another message get time to print it; a rank that does not print leaves the abort to the one that
    // does.
    listen(mine, start + if printed_elsewhere { 4 * pause } else { 2 * pause });
    // SAFETY: MPI is initialized while this module is in use, and this is the thread that did it.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    end_this(code)
}

/// A panic on the main thread ends all ranks. Another thread must not call MPI: its panic ends the process, and
/// mpirun ends the rest.
pub(super) fn end_all_on_panic(recorder: Arc<Recorder>) {
    let main = std::thread::current().id();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let print = || {
            crate::stderr::print(&format!("rank {} on {}, {recorder}:", recorder.rank(), host()));
            hook(info);
        };
        if std::thread::current().id() == main {
            end_all(&recorder, &info.to_string(), print, 1);
        }
        recorder.leave();
        print();
        end_this(1)
    }));
}

fn hash(what: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Starts a send to every other process of the run without waiting for it; false if there is no other process.
fn send_to_all(mine: Notice) -> bool {
    // Leaked: the buffer must outlive the sends, which last until the process ends.
    let notice: &'static Notice = Box::leak(Box::new(mine));
    let (mut me, mut processes) = (0, 0);
    // SAFETY: as in `end_all`; the buffer is never freed, and requests that are not waited for are allowed.
    unsafe {
        ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut me);
        ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut processes);
        for to in (0..processes).filter(|&to| to != me) {
            let (buffer, mut request) = (notice.as_ptr().cast(), ffi::RSMPI_REQUEST_NULL);
            ffi::MPI_Isend(buffer, 2, ffi::RSMPI_UINT64_T, to, TAG, ffi::RSMPI_COMM_WORLD, &mut request);
        }
    }
    processes > 1
}

/// Receives notices until `end`; true if a lower rank has the same message.
fn listen(mine: Notice, end: Instant) -> bool {
    let mut printed_elsewhere = false;
    while Instant::now() < end {
        match received() {
            Some([rank, what]) => printed_elsewhere |= rank < mine[0] && what == mine[1],
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    printed_elsewhere
}

/// The next notice of another rank, if one has arrived.
fn received() -> Option<Notice> {
    let (mut there, mut notice) = (0, Notice::default());
    // SAFETY: as in `end_all`. Only `send_to_all` sends on this communicator, so the message found is the one
    // received, two numbers long, and it has arrived already.
    unsafe {
        let (any, world) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_COMM_WORLD);
        ffi::MPI_Iprobe(any, TAG, world, &mut there, ffi::RSMPI_STATUS_IGNORE);
        if there == 0 {
            return None;
        }
        let buffer = notice.as_mut_ptr().cast();
        ffi::MPI_Recv(buffer, 2, ffi::RSMPI_UINT64_T, any, TAG, world, ffi::RSMPI_STATUS_IGNORE);
    }
    Some(notice)
}

pub(super) fn end_this(code: i32) -> ! {
    // SAFETY: ends the process without running exit handlers, which could call MPI here.
    unsafe { nix::libc::_exit(code) }
}
