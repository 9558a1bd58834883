//! The reading side: what a rank has recorded, and whether its process still runs.

use super::record::{self, Channel, Packed, Record};
use super::ring::{CALL_ENTRIES, ENTRIES, ENTRY, Recorder, at};
use super::shared::Slot;
use crate::time::Phase;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A copy of a rank's slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub rank: usize,
    pub pid: i32,
    born: u64,
    /// Whether the process ended by its own decision.
    pub left: bool,
    /// Grows with every record, report of long work, and end of a wait.
    pub progress: u64,
    /// 0 before the first step.
    pub step: u64,
    /// The present work of the rank, in words.
    pub place: String,
    pub blocked: Option<Blocked>,
    /// Calls started and finished, by [`Channel::index`].
    pub started: Vec<u32>,
    pub finished: Vec<u32>,
    /// The ring in words, the oldest record first.
    pub ring: Vec<String>,
    /// The last calls, and the one that the device waits for, by their channel, number and name.
    pub calls: Vec<(Channel, u32, String)>,
}

/// The call that the host of a rank waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    pub channel: Channel,
    pub number: u32,
    /// The only rank that it waits for, in a message between two ranks.
    pub peer: Option<usize>,
}

/// The state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    Runs,
    /// Stopped by a signal, or by a debugger.
    Stopped,
    /// One of its threads is in a system call that cannot be interrupted, most often of a disk or a file server.
    InKernel,
    /// Its process has ended, and it did not say so.
    Died,
}

impl Snapshot {
    pub(super) fn read(words: &[AtomicU64]) -> Option<Snapshot> {
        let word = |i: usize| words[i].load(Relaxed);
        let rank = word(at::RANK).checked_sub(1)? as usize;
        let counts = |from: usize| (0..Channel::COUNT).map(|i| word(from + i) as u32).collect();
        let records = records(words, at::BEATS, at::RING, ENTRIES);
        let device = blocked(word(at::DEVICE));
        let name = record::name_of([word(at::DEVICE_WHAT), word(at::DEVICE_WHAT + 1)]);
        let of_device = device.map(|call| (call.channel, call.number, name));
        Some(Snapshot {
            rank,
            pid: word(at::PID) as i32,
            born: word(at::BORN),
            left: word(at::LEFT) != 0,
            progress: word(at::BEATS).wrapping_add(word(at::TICKS)),
            step: word(at::STEP),
            place: place(words),
            blocked: blocked(word(at::BLOCKED)).or(device),
            started: counts(at::STARTED),
            finished: counts(at::FINISHED),
            calls: calls(words).into_iter().chain(of_device).collect(),
            ring: records.into_iter().map(|(time, record)| format!("{:.6} s: {record}", time as f64 / 1e9)).collect(),
        })
    }

    /// The state of the process, as the kernel of this host tells it.
    pub fn condition(&self) -> Condition {
        condition(self.pid, self.born, self.left)
    }

    /// The name of a call, where the ring still has it.
    pub fn call(&self, channel: Channel, number: u32) -> Option<&str> {
        self.calls.iter().find(|(c, n, _)| (*c, *n) == (channel, number)).map(|(_, _, what)| what.as_str())
    }
}

impl Slot {
    /// See [`Snapshot::progress`].
    pub fn progress(&self) -> u64 {
        let word = |i: usize| self.words()[i].load(Relaxed);
        word(at::BEATS).wrapping_add(word(at::TICKS))
    }

    /// Whether the process of this slot has ended, and did not say so.
    pub fn has_died(&self) -> bool {
        let word = |i: usize| self.words()[i].load(Relaxed);
        let runs = || process(word(at::PID) as i32).is_some_and(|(state, born)| born == word(at::BORN) && state != 'Z');
        word(at::RANK) > 0 && word(at::LEFT) == 0 && !runs()
    }

    /// Makes `rank` the one that reports for the host of this first slot, unless another does.
    pub fn claim(&self, rank: usize) -> bool {
        self.words()[at::CLAIM].compare_exchange(0, rank as u64 + 1, Relaxed, Relaxed).is_ok()
    }

    /// Takes the claim back.
    pub fn release(&self) {
        self.words()[at::CLAIM].store(0, Relaxed);
    }
}

fn condition(pid: i32, born: u64, left: bool) -> Condition {
    let gone = || if left { Condition::Runs } else { Condition::Died };
    match process(pid) {
        Some((state, started)) if started == born => match state {
            'T' | 't' => Condition::Stopped,
            'Z' | 'X' => gone(),
            _ if is_in_kernel(pid) => Condition::InKernel,
            _ => Condition::Runs,
        },
        _ => gone(),
    }
}

impl Recorder {
    /// A copy of what was recorded so far.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::read(self.words()).expect("a recorder has a rank from its start")
    }
}

/// The records of a ring with their times, the oldest first; see `Recorder::append`.
fn records(words: &[AtomicU64], count: usize, ring: usize, entries: usize) -> Vec<(u64, Record)> {
    let beats = words[count].load(Relaxed) as usize;
    let read = |beat: usize| {
        let entry = &words[ring + (beat % entries) * ENTRY..][..ENTRY];
        let packed: Packed = std::array::from_fn(|i| entry[1 + i].load(Relaxed));
        Some((entry[0].load(Relaxed), record::unpack(packed)?))
    };
    (beats.saturating_sub(entries)..beats).filter_map(read).collect()
}

fn calls(words: &[AtomicU64]) -> Vec<(Channel, u32, String)> {
    let call = |(_, record): (u64, Record)| match record {
        Record::Started { channel, number, what, .. } => Some((channel, number, what)),
        _ => None,
    };
    records(words, at::CALLS, at::CALL_RING, CALL_ENTRIES).into_iter().filter_map(call).collect()
}

fn blocked(word: u64) -> Option<Blocked> {
    let channel = Channel::of_index(((word >> 56) as usize).checked_sub(1)?)?;
    let peer = (word >> 32 & 0xff_ffff).checked_sub(1).map(|rank| rank as usize);
    Some(Blocked { channel, number: word as u32, peer })
}

/// "step 12, backward of micro-batch 3, layer 5, matmul_nn".
fn place(words: &[AtomicU64]) -> String {
    let word = |i: usize| words[i].load(Relaxed);
    let mut parts = vec![match word(at::STEP) {
        0 => "before the first step".to_string(),
        step => format!("step {step}"),
    }];
    let scope = |from: usize| record::unpack(record::scope_words([word(from), word(from + 1), word(from + 2)]));
    match scope(at::PART) {
        Some(part) => parts.push(part.to_string()),
        None if word(at::STEP) > 0 => {
            parts.push(Phase::ALL[word(at::PHASE) as usize % Phase::ALL.len()].label().to_string());
        }
        None => {}
    }
    parts.extend(scope(at::UNIT).map(|unit| unit.to_string()));
    for from in [at::OP, at::WORK] {
        parts.push(record::name_of([word(from), word(from + 1)]));
    }
    let device: Vec<u8> = (at::DEVICE_AT..at::DEVICE_AT_END).flat_map(|i| word(i).to_le_bytes()).collect();
    let device = String::from_utf8_lossy(&device).trim_end_matches('\0').to_string();
    if !device.is_empty() {
        parts.push(format!("the device is at {device}"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

/// Whether a thread of the process is in a system call that cannot be interrupted.
fn is_in_kernel(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| matches!(state_in(&thread.path().join("stat")), Some(('D', _))))
}

/// The state of a process and when it was started; `None` if there is none of this number.
fn process(pid: i32) -> Option<(char, u64)> {
    state_in(format!("/proc/{pid}/stat").as_ref())
}

fn state_in(path: &Path) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(path).ok()?;
    // The second field is the program's name in parentheses, which may hold anything; the third is the state, the 22nd
    // the time of the start.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether a process of this host has this number; one that has ended and is not yet waited for does not live.
pub fn lives(pid: u32) -> bool {
    process(pid as i32).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// When the process of this number was started, in the kernel's ticks.
pub(super) fn born(pid: i32) -> Option<u64> {
    process(pid).map(|(_, born)| born)
}
