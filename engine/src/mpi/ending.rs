//! How a rank that failed ends all ranks: with one message of those that failed alike, and none left hanging.
//!
//! The other ranks may be anywhere, so nothing is waited for without a limit. A rank that failed tells all others
//! what it has to say and listens for a moment: where a rank before it says the same, it is silent.

use super::host;
use crate::time::RankProgress;
use mpi::ffi;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// In which ranks that fail together find each other.
const MOMENT: Duration = Duration::from_secs(1);
/// After which a rank ends itself, whatever MPI does.
const LIMIT: Duration = Duration::from_secs(10);
const TAG: i32 = 1;

/// What a rank has to say, for the others: its rank in the run, and a hash of the text.
type Words = [u64; 2];

/// Says `what` of the rank at `place`, unless a rank before it does, and ends all ranks. On the main thread.
pub(super) fn end_all(place: &RankProgress, what: &str, say: impl FnOnce(), code: i32) -> ! {
    std::thread::spawn(move || {
        std::thread::sleep(LIMIT);
        end_this(code)
    });
    let mine = [place.rank() as u64, hash(what)];
    let moment = if tell(mine) { MOMENT } else { Duration::ZERO };
    let start = Instant::now();
    let said = listen(mine, start + moment);
    if !said {
        say();
    }
    // Time for ranks that have something else to say; one that has nothing leaves the end to the one that has.
    listen(mine, start + if said { 4 * moment } else { 2 * moment });
    // SAFETY: MPI is initialized while this module is in use, and this is the thread that did it.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code) };
    end_this(code)
}

/// A bug's panic on the main thread ends all ranks; on another thread, which must not call MPI, it ends the process,
/// and mpirun ends the rest.
pub(super) fn end_all_on_panic(place: Arc<RankProgress>) {
    let main = std::thread::current().id();
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let say = || {
            say_line(format!("rank {} on {}, {place}:", place.rank(), host()));
            print(info);
        };
        if std::thread::current().id() == main {
            end_all(&place, &info.to_string(), say, 1);
        }
        say();
        end_this(1)
    }));
}

/// On stderr in one write: the lines of ranks that speak together do not mix.
pub(super) fn say_line(text: String) {
    eprint!("{}", text + "\n");
}

fn hash(what: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Starts a message to every other process of the run, and says whether there are any; nobody waits until it is there.
fn tell(mine: Words) -> bool {
    // It must outlive the messages, and with them the process.
    let words: &'static Words = Box::leak(Box::new(mine));
    let (mut me, mut processes) = (0, 0);
    // SAFETY: as in `end_all`; the buffer is never freed, and requests that are not waited for are allowed.
    unsafe {
        ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut me);
        ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut processes);
        for to in (0..processes).filter(|&to| to != me) {
            let (buffer, mut request) = (words.as_ptr().cast(), ffi::RSMPI_REQUEST_NULL);
            ffi::MPI_Isend(buffer, 2, ffi::RSMPI_UINT64_T, to, TAG, ffi::RSMPI_COMM_WORLD, &mut request);
        }
    }
    processes > 1
}

/// Until `end`: does a rank before this one have the same to say?
fn listen(mine: Words, end: Instant) -> bool {
    let mut said = false;
    while Instant::now() < end {
        match received() {
            Some([rank, what]) => said |= rank < mine[0] && what == mine[1],
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    said
}

/// The words of another rank that have come.
fn received() -> Option<Words> {
    let (mut there, mut words) = (0, Words::default());
    // SAFETY: as in `end_all`. Only `tell` sends messages on this communicator, so that the one found is the one that
    // is received, two numbers long, and there already.
    unsafe {
        let (any, world) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_COMM_WORLD);
        ffi::MPI_Iprobe(any, TAG, world, &mut there, ffi::RSMPI_STATUS_IGNORE);
        if there == 0 {
            return None;
        }
        let buffer = words.as_mut_ptr().cast();
        ffi::MPI_Recv(buffer, 2, ffi::RSMPI_UINT64_T, any, TAG, world, ffi::RSMPI_STATUS_IGNORE);
    }
    Some(words)
}

pub(super) fn end_this(code: i32) -> ! {
    // SAFETY: ends the process without running exit handlers, which could call MPI here.
    unsafe { nix::libc::_exit(code) }
}
