//! The writing side: a rank's slot, and the recorder that fills it.

use super::record::{self, Channel, Packed};
use super::shared::Slot;
use crate::scope::Scope;
use crate::time::Phase;
use std::fmt::{self, Display};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words of a slot: two pages.
pub(super) const WORDS: usize = 1024;

/// The first words of a slot, by their index.
pub(super) mod at {
    use super::Channel;

    pub const PID: usize = 0;
    /// When the process was started, in the kernel's ticks, which tells a process from a later one of the same number.
    pub const BORN: usize = 1;
    /// The rank in the run plus one; 0 in a slot that nobody has taken.
    pub const RANK: usize = 2;
    /// 1 once the process ends by its own decision.
    pub const LEFT: usize = 3;
    /// Records so far.
    pub const BEATS: usize = 4;
    /// Reports of long work, by any thread.
    pub const TICKS: usize = 5;
    /// Calls started so far, over all channels.
    pub const CALLS: usize = 6;
    /// 0 before the first step.
    pub const STEP: usize = 7;
    pub const PHASE: usize = 8;
    /// The call that the host waits for, packed; 0: none.
    pub const BLOCKED: usize = 9;
    /// The part of the step, and the unit in it, as packed records without their first word.
    pub const PART: usize = 10;
    pub const UNIT: usize = 13;
    /// The last op.
    pub const OP: usize = 16;
    /// The work that is neither an op nor a call.
    pub const WORK: usize = 18;
    /// The first call of the device that has not completed, packed as `BLOCKED`; 0: none.
    pub const DEVICE: usize = 20;
    /// The rank, plus one, that reports for its host; 0: none. In the first slot of a host.
    pub const CLAIM: usize = 21;
    /// The name of the call in `DEVICE`.
    pub const DEVICE_WHAT: usize = 22;
    pub const STARTED: usize = 24;
    pub const FINISHED: usize = STARTED + Channel::COUNT;
    /// The work of the device, in words.
    pub const DEVICE_AT: usize = FINISHED + Channel::COUNT;
    pub const DEVICE_AT_END: usize = DEVICE_AT + 8;
    /// The ring of the last calls begins here: ops push them out of the other one before they are waited for.
    pub const CALL_RING: usize = 64;
    /// The ring begins here.
    pub const RING: usize = CALL_RING + super::CALL_ENTRIES * super::ENTRY;
    const _: () = assert!(DEVICE_AT_END <= CALL_RING);
}

/// Words of an entry: the time in nanoseconds, and the record.
pub(super) const ENTRY: usize = 5;
pub(super) const ENTRIES: usize = (WORDS - at::RING) / ENTRY;
pub(super) const CALL_ENTRIES: usize = 48;

/// The memory that a rank's records go to: memory of this process alone, until the host's rings are mapped.
pub struct Recorder {
    own: Box<[AtomicU64]>,
    shared: OnceLock<Slot>,
}

impl Default for Recorder {
    fn default() -> Self {
        let recorder = Recorder { own: (0..WORDS).map(|_| AtomicU64::new(0)).collect(), shared: OnceLock::new() };
        recorder.introduce();
        recorder
    }
}

impl Recorder {
    pub(super) fn words(&self) -> &[AtomicU64] {
        self.shared.get().map_or(&self.own, Slot::words)
    }

    /// Records into this slot of the host's rings from now on. Called once, on the main thread.
    pub fn move_to(&self, slot: Slot) {
        for (to, from) in slot.words().iter().zip(&self.own) {
            to.store(from.load(Relaxed), Relaxed);
        }
        assert!(self.shared.set(slot).is_ok(), "a recorder moves once");
    }

    fn introduce(&self) {
        self.set(at::PID, u64::from(std::process::id()));
        self.set(at::BORN, super::snapshot::born(std::process::id() as i32).unwrap_or_default());
        self.set(at::RANK, 1);
    }

    fn set(&self, word: usize, value: u64) {
        self.words()[word].store(value, Relaxed);
    }

    fn get(&self, word: usize) -> u64 {
        self.words()[word].load(Relaxed)
    }

    pub fn is_rank(&self, rank: usize) {
        self.set(at::RANK, rank as u64 + 1);
    }

    pub fn rank(&self) -> usize {
        self.get(at::RANK).saturating_sub(1) as usize
    }

    /// Adds a record. Main thread only: the count of records is the place of the next one.
    fn add(&self, packed: Packed) {
        self.append(packed, at::BEATS, at::RING, ENTRIES);
    }

    /// Appends to the ring of so many entries from `ring` on, whose records the word `count` counts.
    fn append(&self, packed: Packed, count: usize, ring: usize, entries: usize) {
        let words = self.words();
        let before = words[count].load(Relaxed);
        let entry = &words[ring + (before as usize % entries) * ENTRY..][..ENTRY];
        entry[0].store(now(), Relaxed);
        for (to, word) in entry[1..].iter().zip(packed) {
            to.store(word, Relaxed);
        }
        words[count].store(before + 1, Relaxed);
    }

    /// Records that `step` begins.
    pub fn step(&self, step: u64) {
        self.set(at::STEP, step);
        self.add(record::step(step));
    }

    /// The step that has begun; 0 before the first one.
    pub fn current_step(&self) -> u64 {
        self.get(at::STEP)
    }

    pub fn enter(&self, phase: Phase) {
        self.set(at::PHASE, phase as u64);
        self.set(at::PART, 0);
        self.set(at::UNIT, 0);
        self.set(at::OP, 0);
        self.tick();
    }

    /// Records that a part of the step begins.
    pub fn scope(&self, scope: Scope) {
        let packed = record::scope(scope);
        let to = if scope.phase().is_some() { at::PART } else { at::UNIT };
        (0..3).for_each(|i| self.set(to + i, packed[1 + i]));
        if to == at::PART {
            self.set(at::UNIT, 0);
        }
        self.set(at::OP, 0);
        self.add(packed);
    }

    /// Records that an op begins, by its name.
    pub fn op(&self, name: &str) {
        let packed = record::op(name);
        self.set(at::OP, packed[1]);
        self.set(at::OP + 1, packed[2]);
        self.add(packed);
    }

    /// Records that a call is started, and returns its number within the channel.
    pub fn start(&self, channel: Channel, what: &str, bytes: usize) -> u32 {
        let word = at::STARTED + channel.index();
        let number = self.get(word) + 1;
        self.set(word, number);
        let packed = record::started(channel, number as u32, what, bytes as u64);
        self.append(packed, at::CALLS, at::CALL_RING, CALL_ENTRIES);
        self.add(packed);
        number as u32
    }

    /// Records that the host waits for a call, until the guard is dropped; for `peer` alone, its rank in the run, where
    /// the call is a message between two ranks.
    pub fn wait(&self, channel: Channel, number: u32, peer: Option<usize>) -> Waiting<'_> {
        self.set(at::BLOCKED, pack_call(channel, number, peer));
        self.add(record::waits(channel, number));
        Waiting { recorder: self, channel, number }
    }

    /// Records the first call of the device that has not completed, by its channel, number and name. Any thread, one at
    /// a time.
    pub fn device_waits(&self, call: Option<(Channel, u32, &str)>) {
        let name = record::pack_name(call.map_or("", |(_, _, what)| what));
        (0..2).for_each(|i| self.set(at::DEVICE_WHAT + i, name[i]));
        self.set(at::DEVICE, call.map_or(0, |(channel, number, _)| pack_call(channel, number, None)));
    }

    /// Records what the device works on while the host waits for it; an empty text: the host does not wait.
    pub fn device_is_at(&self, what: &str) {
        let bytes = what.as_bytes();
        for (word, at) in (at::DEVICE_AT..at::DEVICE_AT_END).zip((0..).step_by(8)) {
            let mut part = [0; 8];
            let rest = &bytes[bytes.len().min(at)..bytes.len().min(at + 8)];
            part[..rest.len()].copy_from_slice(rest);
            self.set(word, u64::from_le_bytes(part));
        }
    }

    /// Starts a call that the host waits for at once.
    pub fn call(&self, channel: Channel, what: &str, bytes: usize) -> Waiting<'_> {
        let number = self.start(channel, what, bytes);
        self.wait(channel, number, None)
    }

    /// Records work that is neither an op nor a call, until the guard is dropped. Main thread only.
    pub fn work(&self, what: &str) -> Working<'_> {
        let packed = record::work(what);
        let outer = [self.get(at::WORK), self.get(at::WORK + 1)];
        self.set(at::WORK, packed[1]);
        self.set(at::WORK + 1, packed[2]);
        self.add(packed);
        Working { recorder: self, outer }
    }

    /// Reports that long work goes on. Any thread.
    pub fn tick(&self) {
        self.words()[at::TICKS].fetch_add(1, Relaxed);
    }

    /// Whether the host waits for a call. Any thread.
    pub fn is_blocked(&self) -> bool {
        self.get(at::BLOCKED) != 0
    }

    /// Records that the process ends by its own decision, so that nobody takes it for killed. Any thread.
    pub fn leave(&self) {
        self.set(at::LEFT, 1);
    }
}

/// A call in one word, never 0.
fn pack_call(channel: Channel, number: u32, peer: Option<usize>) -> u64 {
    let peer = peer.map_or(0, |rank| rank as u64 + 1) & 0xff_ffff;
    (channel.index() as u64 + 1) << 56 | peer << 32 | u64::from(number)
}

/// Held while the host waits for a call.
pub struct Waiting<'a> {
    recorder: &'a Recorder,
    channel: Channel,
    number: u32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let word = at::FINISHED + self.channel.index();
        self.recorder.set(word, self.recorder.get(word).max(u64::from(self.number)));
        self.recorder.set(at::BLOCKED, 0);
        self.recorder.tick();
    }
}

/// Held during work that is neither an op nor a call.
pub struct Working<'a> {
    recorder: &'a Recorder,
    outer: [u64; 2],
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.recorder.set(at::WORK, self.outer[0]);
        self.recorder.set(at::WORK + 1, self.outer[1]);
        self.recorder.tick();
    }
}

/// Nanoseconds of the host's monotonic clock, which all its processes share.
pub(super) fn now() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    let time = nix::time::clock_gettime(clock).expect("Linux has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// The step and phase, for the message of an error that ends the run.
impl Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.current_step() {
            0 => write!(f, "before the first step"),
            step => {
                let phase = Phase::ALL[self.get(at::PHASE) as usize % Phase::ALL.len()];
                write!(f, "step {step}, {}", phase.label())
            }
        }
    }
}
