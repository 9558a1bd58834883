//! A thread of each rank that ends a run in which nothing moves, and names the rank and the place that hold it up. It
//! asks neither MPI nor NCCL, since these may be what hangs: it reads the flight recorders of its host's ranks in
//! shared memory, and exchanges copies of them with other hosts through the run's directory.
//!
//! ```text
//! every 250 ms: a neighbour has died ───────────────────────────┐
//!               no progress for the limit -> the host's claim ──┴─> copies of all rings -> verdict -> message, exit 1
//! ```
//!
//! Only one rank of a host decides (the claim is a word in the shared memory), and of several hosts that of the lowest
//! rank reports (`decision.rs`). A rank that waits for one which makes progress waits on.

mod activity;
mod copies;
mod decision;
pub mod patience;
mod rings;
mod sentence;
mod starting;

use crate::output::to_stderr;
use crate::status::RunStatus;
use activity::{Activity, Expected};
use copies::Copies;
use decision::{Decision, RankCopy, decide};
use engine::error::{Error, Result};
use engine::flight::{Channel, Recorder, Seen, SharedRings, verdict};
use engine::layout::mesh::GroupKind;
use engine::layout::placement::RankSlot;
use engine::layout::rank_layout::RankLayout;
use engine::mpi::{Comm, end_process};
use report::records::status::State;
pub use starting::Starting;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The interval of the checks.
const INTERVAL: Duration = Duration::from_millis(250);
/// The most that one interval counts: a process that was stopped itself, or a machine that slept, has not waited.
const LONGEST: Duration = Duration::from_secs(1);
/// A neighbour counts as dead only if this rank still lives so much later: mpirun ends the ranks of a failed run one
/// after another.
const CONFIRM: Duration = Duration::from_millis(350);
/// The time that other hosts have to answer with copies of their ranks.
const COPY: Duration = Duration::from_secs(3);
/// After this time a rank ends itself although another one has claimed to report.
const REPORT: Duration = Duration::from_secs(15);

/// The state that a device reports: a counter that grows while it works, and the first call that has not completed.
pub type Probe = Box<dyn Fn() -> (u64, Option<(GroupKind, u32, &'static str)>) + Send>;

/// The parts of the run that the watchdog needs to know.
pub struct Watched {
    /// The host and process slot of each rank of the mesh.
    pub places: Vec<RankSlot>,
    /// The layout of this rank.
    pub rank_layout: RankLayout,
    /// The time without progress after which the run hangs; zero: it never does.
    pub limit: Duration,
    /// The run's directory.
    pub dir: PathBuf,
    pub status: Arc<RunStatus>,
}

/// The thread, until this is dropped.
pub struct Watchdog(Arc<Shared>);

struct Shared {
    recorder: Arc<Recorder>,
    ended: AtomicBool,
    probe: Mutex<Option<Probe>>,
}

impl Watchdog {
    /// Starts the threads of all ranks of `comm`, which is in the mesh's order. From now on this rank records into
    /// memory that it shares with the others of its host. Collective.
    pub fn start(watched: Watched, comm: &Comm) -> Result<Watchdog> {
        let recorder = comm.recorder();
        let (rings, index) = rings::share(comm);
        recorder.move_to(rings.slot(index));
        comm.barrier();
        let shared = Arc::new(Shared { recorder, ended: AtomicBool::new(false), probe: Mutex::default() });
        let copies = Copies::new(&watched.dir, comm);
        let ages = vec![Age::default(); rings.len()];
        let mut watcher = Watcher { watched, rings, index, ages, copies, shared: shared.clone(), dead: None };
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(move || watcher.watch());
        let made = thread.map(drop).map_err(|e| Error::run(format!("a thread cannot be made: {e}; raise `ulimit -u`")));
        comm.agree(made)?;
        Ok(Watchdog(shared))
    }

    /// Also watches a device.
    pub fn also_watch(&self, probe: Probe) {
        *self.0.probe.lock().expect("no thread panics while it holds this lock") = Some(probe);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.ended.store(true, Relaxed);
        self.0.recorder.leave();
    }
}

/// The reason of a host's copies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copied {
    /// It counts the run as hanging.
    Hanging,
    /// Another host has asked for them.
    Asked,
}

/// How long a rank of this host has been without progress.
#[derive(Clone, Default)]
struct Age {
    progress: u64,
    idle: Duration,
}

struct Watcher {
    watched: Watched,
    rings: SharedRings,
    /// This rank's slot.
    index: usize,
    /// The age of each slot of this host.
    ages: Vec<Age>,
    copies: Copies,
    shared: Arc<Shared>,
    /// A slot whose process was seen dead, and when that was first seen.
    dead: Option<(usize, Instant)>,
}

impl Watcher {
    fn watch(&mut self) {
        let (mut last, mut device, mut claimed_since) = (Instant::now(), 0, None);
        let mut activity = Activity::default();
        while !self.shared.ended.load(Relaxed) {
            std::thread::sleep(INTERVAL);
            let passed = last.elapsed().min(LONGEST);
            last = Instant::now();
            self.ask_device(&mut device);
            self.look_at_activity(&mut activity);
            self.grow(passed);
            self.look_for_dead();
            let hangs = !self.watched.limit.is_zero() && self.ages[self.index].idle >= self.watched.limit;
            if hangs && self.claim() {
                self.decide();
            } else if !hangs {
                claimed_since = None;
            } else if claimed_since.get_or_insert_with(Instant::now).elapsed() > REPORT {
                self.end();
            }
            if self.copies.are_wanted() {
                self.write_copies(Copied::Asked);
            }
        }
    }

    fn rank(&self) -> usize {
        self.watched.rank_layout.rank
    }

    fn claim(&self) -> bool {
        self.rings.slot(0).claim(self.rank())
    }

    /// Takes over what the device says; its progress is the rank's.
    fn ask_device(&self, last: &mut u64) {
        let probe = self.shared.probe.lock().expect("no thread panics while it holds this lock");
        let Some(probe) = &*probe else { return };
        let (progress, call) = probe();
        if std::mem::replace(last, progress) != progress {
            self.shared.recorder.tick();
        }
        let call = call.map(|(kind, number, what)| (Channel::Group(kind), number, what));
        self.shared.recorder.device_waits(call);
    }

    /// Work that records nothing is progress, too, unless this rank waits for another one.
    fn look_at_activity(&self, activity: &mut Activity) {
        let recorder = &self.shared.recorder;
        let expected = match (recorder.is_blocked(), recorder.current_step()) {
            (true, _) => Expected::Nothing,
            (false, 0) => Expected::Anything,
            (false, _) => Expected::Files,
        };
        if activity.goes_on(expected) {
            recorder.tick();
        }
    }

    fn grow(&mut self, passed: Duration) {
        for (index, age) in self.ages.iter_mut().enumerate() {
            let progress = self.rings.slot(index).progress();
            age.idle = if progress == age.progress { age.idle + passed } else { Duration::ZERO };
            age.progress = progress;
        }
    }

    /// The ranks of this host as they are now.
    fn seen(&self) -> Vec<Seen> {
        let see = |(index, age): (usize, &Age)| {
            let snapshot = self.rings.read(index)?;
            Some(Seen { condition: snapshot.condition(), snapshot, idle: age.idle.as_secs_f64() })
        };
        self.ages.iter().enumerate().filter_map(see).collect()
    }

    /// Ends the run if a rank of this host has died without a message.
    fn look_for_dead(&mut self) {
        let Some(index) = (0..self.rings.len()).find(|&index| self.rings.slot(index).has_died()) else {
            self.dead = None;
            return;
        };
        let since = match self.dead {
            Some((before, since)) if before == index => since,
            _ => Instant::now(),
        };
        self.dead = Some((index, since));
        if since.elapsed() >= CONFIRM && self.claim() {
            self.write_copies(Copied::Hanging);
            self.report(&self.by_rank(self.seen()));
        }
    }

    /// The ranks of the run, as far as they are known.
    fn by_rank(&self, seen: impl IntoIterator<Item = Seen>) -> Vec<Option<Seen>> {
        let mut ranks = vec![None; self.watched.places.len()];
        for one in seen {
            let rank = one.snapshot.rank;
            assert!(rank < ranks.len(), "rank {rank} of {}", ranks.len());
            ranks[rank] = Some(one);
        }
        ranks
    }

    /// This rank has claimed to decide for its host: either the run hangs, or somebody that it waits for makes
    /// progress.
    fn decide(&mut self) {
        self.write_copies(Copied::Hanging);
        let copies = if self.copies.are_exchanged() { self.gather() } else { self.own_copies(Copied::Hanging) };
        let ranks = self.by_rank(copies.iter().map(|copy| copy.seen.clone()));
        let verdict = verdict(&ranks, &|rank, channel| self.members(rank, channel));
        let lowest = self.seen().iter().map(|seen| seen.snapshot.rank).min().unwrap_or(self.rank());
        match decide(lowest, &verdict, &copies, self.watched.limit) {
            Decision::Report => self.report(&ranks),
            Decision::LeaveTo(first) => self.leave_to(first),
            Decision::GoOn(idle) => self.go_on(idle),
        }
    }

    fn own_copies(&self, why: Copied) -> Vec<RankCopy> {
        let (written, hangs) = (copies::now(), why == Copied::Hanging);
        self.seen().into_iter().map(|seen| RankCopy { written, hangs, seen }).collect()
    }

    fn write_copies(&mut self, why: Copied) {
        self.copies.write(self.own_copies(why));
    }

    /// Asks all hosts for their ranks, and returns those whose copies are newer than the question.
    fn gather(&mut self) -> Vec<RankCopy> {
        let written = |copies: &[RankCopy]| copies.iter().map(|c| (c.seen.snapshot.rank, c.written)).collect();
        let before: BTreeMap<usize, u64> = written(&self.copies.read());
        self.copies.ask();
        let start = Instant::now();
        loop {
            // Another host that asks must not wait for this one to decide. Its own ranks are fresh in any case.
            self.write_copies(Copied::Hanging);
            let mut copies = self.copies.read();
            copies.retain(|copy| before.get(&copy.seen.snapshot.rank) != Some(&copy.written));
            if copies.len() >= self.watched.places.len() || start.elapsed() >= COPY {
                // Also where the disk does not answer.
                copies.extend(self.own_copies(Copied::Hanging));
                return copies;
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// The host of a lower rank reports, unless it finds that the run does not hang.
    fn leave_to(&mut self, first: usize) {
        let start = Instant::now();
        while start.elapsed() < 2 * COPY {
            std::thread::sleep(INTERVAL);
            let copies = self.copies.read();
            if copies.iter().any(|copy| copy.seen.snapshot.rank == first && !copy.hangs) {
                return self.go_on(Duration::ZERO);
            }
        }
        self.end()
    }

    /// The run does not hang: this host decides again when that rank has been idle for the limit.
    fn go_on(&mut self, idle: Duration) {
        self.ages[self.index].idle = idle;
        match self.copies.are_exchanged() {
            true => self.write_copies(Copied::Asked),
            false => self.copies.remove(),
        }
        self.rings.slot(0).release();
    }

    fn members(&self, rank: usize, channel: Channel) -> Vec<usize> {
        let layout = &self.watched.rank_layout;
        match channel {
            Channel::Host | Channel::HostGroup => (0..layout.mesh.ranks()).collect(),
            Channel::Group(kind) => layout.mesh.members(rank, kind, layout.kv_replicas),
        }
    }

    /// Says why the run ends, in the log and in `status.json`, and ends it.
    fn report(&self, ranks: &[Option<Seen>]) -> ! {
        if !self.copies.are_first_reported() {
            self.end();
        }
        let verdict = verdict(ranks, &|rank, channel| self.members(rank, channel));
        let idle = self.ages[self.index].idle;
        let sentence = sentence::of(&verdict, ranks, &self.watched, idle);
        let standing = self.watched.status.standing();
        let copies =
            self.copies.place().map_or(String::new(), |dir| format!("; the last operations of the ranks are in {dir}"));
        to_stderr(&format!("{sentence}\n{standing}{copies}; the same command continues the run"));
        let (done, wait) = channel();
        let status = self.watched.status.clone();
        let write = move || {
            status.end(State::Failed, &sentence);
            // Nobody listens any more where the disk took too long.
            let _ = done.send(());
        };
        if std::thread::Builder::new().spawn(write).is_ok() {
            let _ = wait.recv_timeout(Duration::from_secs(2));
        }
        self.end()
    }

    fn end(&self) -> ! {
        self.shared.recorder.leave();
        end_process(1)
    }
}
