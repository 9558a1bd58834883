//! Streams, each a thread with a queue, and the records of events in them.

use crate::code::{Outcome, abort};
use crate::fault;
use crate::queues::HardwareQueue;
use crate::settings::settings;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The interval at which a waiting thread checks whether the device has failed.
const POLL: Duration = Duration::from_millis(10);
/// The most jobs in a stream's queue.
const QUEUE_LIMIT: usize = 1024;

/// An operation of a stream.
pub type Work = Box<dyn FnOnce() + Send>;

struct Job {
    work: Work,
    kind: Kind,
    /// Its place in the hardware queue.
    ticket: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A kernel or a copy, which is left out on a device that has failed.
    Operation,
    /// A signal of the stream's progress.
    Signal,
    /// A wait, which holds up its hardware queue.
    Wait,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    busy: bool,
    closed: bool,
}

pub struct Stream {
    pub device: i32,
    hardware: &'static HardwareQueue,
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Stream {
    /// Starts stream number `number` of the process.
    pub fn start(number: usize, device: i32) -> Arc<Stream> {
        let hardware = HardwareQueue::of(number);
        let stream = Arc::new(Stream { device, hardware, queue: Mutex::default(), changed: Condvar::new() });
        let own = stream.clone();
        let thread = std::thread::Builder::new().name(format!("stream {number}"));
        thread
            .spawn(move || own.run(Delay::of(number)))
            .unwrap_or_else(|e| abort(&format!("no thread for a stream: {e}")));
        stream
    }

    fn run(&self, mut delay: Delay) {
        while let Some(job) = self.next() {
            delay.wait();
            self.hardware.wait_for_turn(job.ticket);
            if job.kind != Kind::Wait {
                self.hardware.pass();
            }
            let runs = job.kind != Kind::Operation || fault::check().is_ok();
            if runs && catch_unwind(AssertUnwindSafe(job.work)).is_err() {
                abort("a stream's work panicked");
            }
            if job.kind == Kind::Wait {
                self.hardware.pass();
            }
            self.lock().busy = false;
            self.changed.notify_all();
        }
    }

    /// The next job; None once the stream is closed and its queue is empty.
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

    fn add(&self, work: Work, kind: Kind) {
        let mut queue = self.lock();
        // Like the driver, blocks while the queue is full, unless the device has failed.
        while queue.jobs.len() >= QUEUE_LIMIT && fault::check().is_ok() {
            queue = self.changed.wait_timeout(queue, POLL).expect("no holder panics").0;
        }
        queue.jobs.push_back(Job { work, kind, ticket: self.hardware.enqueue() });
        self.changed.notify_all();
    }

    /// Enqueues work.
    pub fn push(&self, work: impl FnOnce() + Send + 'static) {
        self.add(Box::new(work), Kind::Operation);
    }

    /// Records that all work enqueued so far has completed.
    pub fn record(&self) -> Arc<Record> {
        let record = Arc::new(Record::default());
        let own = record.clone();
        self.add(Box::new(move || own.pass()), Kind::Signal);
        record
    }

    /// Makes work that is enqueued from now on wait for `record`.
    pub fn follow(&self, record: Arc<Record>) {
        self.add(Box::new(move || _ = record.wait()), Kind::Wait);
    }

    /// Makes work that is enqueued from now on wait until `is_reached`, or until the device has failed.
    pub fn hold(&self, is_reached: impl Fn() -> bool + Send + 'static) {
        let wait = move || {
            while !is_reached() && fault::check().is_ok() {
                std::thread::sleep(POLL / 100);
            }
        };
        self.add(Box::new(wait), Kind::Wait);
    }

    pub fn idle(&self) -> bool {
        let queue = self.lock();
        queue.jobs.is_empty() && !queue.busy
    }

    /// Blocks until all enqueued work has completed or the device has failed.
    pub fn wait(&self) -> Outcome<()> {
        let mut queue = self.lock();
        while !queue.jobs.is_empty() || queue.busy {
            fault::check()?;
            queue = self.changed.wait_timeout(queue, POLL).expect("no holder panics").0;
        }
        fault::check()
    }

    /// Ends the thread once the queue is empty.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A point that a stream reaches once.
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

    /// The time at which it was reached.
    pub fn at(&self) -> Option<Instant> {
        *self.at.lock().expect("no holder panics")
    }

    /// Blocks until it is reached or the device has failed.
    pub fn wait(&self) -> Outcome<()> {
        let mut at = self.at.lock().expect("no holder panics");
        while at.is_none() {
            fault::check()?;
            at = self.passed.wait_timeout(at, POLL).expect("no holder panics").0;
        }
        fault::check()
    }
}

/// The delay before each operation of a stream.
struct Delay {
    random: Option<u64>,
    slow: Option<Duration>,
}

impl Delay {
    fn of(number: usize) -> Delay {
        let mixed = |seed: u64| (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number as u64 + 1) << 32 | 1;
        let slow = settings().slow.as_ref().filter(|slow| slow.streams.contains(&number));
        Delay { random: settings().delay.map(mixed), slow: slow.map(|slow| slow.pause) }
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
