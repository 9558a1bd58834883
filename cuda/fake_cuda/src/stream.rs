//! Streams, each a thread with a queue, and the records that events make in them.

use crate::code::{Said, die};
use crate::fault;
use crate::settings::settings;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often who waits looks whether the device has failed meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// Jobs that a stream holds.
const ROOM: usize = 1024;

/// Something that a stream does.
pub type Work = Box<dyn FnOnce() + Send>;

struct Job {
    work: Work,
    /// Whether it happens on a device that has failed, too: only what tells others that the stream has come here.
    always: bool,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    busy: bool,
    closed: bool,
}

pub struct Stream {
    pub device: i32,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Stream {
    /// The `number`th stream of the process.
    pub fn start(number: usize, device: i32) -> Arc<Stream> {
        let stream = Arc::new(Stream { device, queue: Mutex::default(), changed: Condvar::new() });
        let own = stream.clone();
        let thread = std::thread::Builder::new().name(format!("stream {number}"));
        thread
            .spawn(move || own.run(Pace::of(number)))
            .unwrap_or_else(|e| die(&format!("no thread for a stream: {e}")));
        stream
    }

    fn run(&self, mut pace: Pace) {
        while let Some(job) = self.next() {
            pace.wait();
            if (job.always || fault::check().is_ok()) && catch_unwind(AssertUnwindSafe(job.work)).is_err() {
                die("a stream's work panicked");
            }
            self.lock().busy = false;
            self.changed.notify_all();
        }
    }

    /// None once the stream is closed and has done everything.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                queue.busy = true;
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).expect("no holder panics");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    fn add(&self, work: Work, always: bool) {
        let mut queue = self.lock();
        // As with a driver: who enqueues too much waits, until there is room or the device has failed.
        while queue.jobs.len() >= ROOM && fault::check().is_ok() {
            queue = self.changed.wait_timeout(queue, LOOK).expect("no holder panics").0;
        }
        queue.jobs.push_back(Job { work, always });
        self.changed.notify_all();
    }

    /// Does this after all that was pushed before.
    pub fn push(&self, work: impl FnOnce() + Send + 'static) {
        self.add(Box::new(work), false);
    }

    /// The record that all pushed before is done.
    pub fn record(&self) -> Arc<Record> {
        let record = Arc::new(Record::default());
        let own = record.clone();
        self.add(Box::new(move || own.pass()), true);
        record
    }

    /// What is pushed from now on happens after `record`.
    pub fn follow(&self, record: Arc<Record>) {
        self.add(Box::new(move || _ = record.wait()), true);
    }

    pub fn idle(&self) -> bool {
        let queue = self.lock();
        queue.jobs.is_empty() && !queue.busy
    }

    /// Until all that was pushed is done, or the device has failed.
    pub fn wait(&self) -> Said<()> {
        let mut queue = self.lock();
        while !queue.jobs.is_empty() || queue.busy {
            fault::check()?;
            queue = self.changed.wait_timeout(queue, LOOK).expect("no holder panics").0;
        }
        fault::check()
    }

    /// Ends the thread once everything is done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A point that a stream passes once.
#[derive(Default)]
pub struct Record {
    at: Mutex<Option<Instant>>,
    passed: Condvar,
}

impl Record {
    pub fn pass(&self) {
        *self.at.lock().expect("no holder panics") = Some(Instant::now());
        self.passed.notify_all();
    }

    /// When it was passed.
    pub fn at(&self) -> Option<Instant> {
        *self.at.lock().expect("no holder panics")
    }

    /// Until it is passed, or the device has failed.
    pub fn wait(&self) -> Said<()> {
        let mut at = self.at.lock().expect("no holder panics");
        while at.is_none() {
            fault::check()?;
            at = self.passed.wait_timeout(at, LOOK).expect("no holder panics").0;
        }
        fault::check()
    }
}

/// How long a stream waits before each of its operations.
struct Pace {
    random: Option<u64>,
    slow: Option<Duration>,
}

impl Pace {
    fn of(number: usize) -> Pace {
        let mixed = |seed: u64| (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number as u64 + 1) << 32 | 1;
        let slow = settings().slow.as_ref().filter(|slow| slow.streams.contains(&number));
        Pace { random: settings().delay.map(mixed), slow: slow.map(|slow| slow.pause) }
    }

    fn wait(&mut self) {
        if let Some(pause) = self.slow {
            std::thread::sleep(pause);
        }
        if let Some(seed) = &mut self.random {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            std::thread::sleep(Duration::from_micros(*seed % 300));
        }
    }
}
