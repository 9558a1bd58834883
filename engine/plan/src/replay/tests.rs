//! Small logs whose times follow by hand: an op takes a second for each of its rows, a call for each of its bytes.

use super::*;
use engine::dry::{Keep, Log};

struct Units(CommMode);

impl CostModel for Units {
    fn op(&self, _: Op, sizes: [usize; 3]) -> f64 {
        sizes[0] as f64
    }

    fn call(&self, _: usize, call: &Call) -> f64 {
        call.bytes as f64
    }

    fn host(&self, _: Scope) -> f64 {
        0.0
    }

    fn mode(&self, _: GroupKind) -> CommMode {
        self.0
    }
}

const OVERLAPPED: CommMode = CommMode::Overlapped { slowdown: 0.0 };

fn op(seconds: usize) -> LogEntry {
    LogEntry::Op { op: Op::MatmulNt, sizes: [seconds, 1, 1] }
}

fn call(what: Operation, kind: GroupKind, bytes: usize, post: usize) -> LogEntry {
    LogEntry::Start(Call { group: 0, kind, members: [0, 1].into(), what, bytes, post })
}

fn gather(bytes: usize, post: usize) -> LogEntry {
    call(Operation::AllGather, GroupKind::Tensor, bytes, post)
}

fn log(rank: usize, events: Vec<LogEntry>) -> Log {
    let mut log = Log::new(rank, Keep::Ops);
    log.events = events;
    log
}

/// Seconds of each rank, without warm-up.
fn seconds(ranks: [Vec<LogEntry>; 2], mode: CommMode) -> [f64; 2] {
    let logs: Vec<Log> = ranks.into_iter().enumerate().map(|(rank, events)| log(rank, events)).collect();
    let logs: Vec<_> = logs.iter().map(|log| (log, 0..log.events.len())).collect();
    let ranks = replay(&logs, &Units(mode));
    for rank in &ranks {
        let sum: f64 = rank.busy.values().chain(rank.exposed.values()).sum();
        assert!((sum - rank.seconds).abs() < 1e-9, "{rank:?}");
    }
    [ranks[0].seconds, ranks[1].seconds]
}

#[test]
fn a_call_overlaps_with_compute() {
    let rank = || vec![op(2), gather(5, 1), op(3), LogEntry::Wait(0), op(1)];
    assert_eq!(seconds([rank(), rank()], OVERLAPPED), [8.0, 8.0], "2, then 5 of which 3 are hidden, then 1");
    assert_eq!(seconds([rank(), rank()], CommMode::Blocking), [11.0, 11.0], "nothing is hidden");
    assert_eq!(seconds([rank(), rank()], CommMode::OnComputeCores), [11.0, 11.0], "the cores do it");
    let slower = CommMode::Overlapped { slowdown: 0.2 };
    assert_eq!(
        seconds([rank(), rank()], slower)[0],
        8.6,
        "the op after the wait pays a fifth of the 3 s that were hidden"
    );
}

#[test]
fn a_call_begins_when_all_ranks_have_reached_it() {
    let late = vec![op(7), gather(1, 1), LogEntry::Wait(0)];
    let early = vec![op(1), gather(1, 1), op(1), LogEntry::Wait(0)];
    assert_eq!(seconds([late, early], OVERLAPPED), [8.0, 8.0]);
}

#[test]
fn calls_of_a_kind_are_one_after_another() {
    let one = |kind| vec![gather(3, 1), call(Operation::AllGather, kind, 4, 2), LogEntry::Wait(0), LogEntry::Wait(1)];
    assert_eq!(seconds([one(GroupKind::Tensor), one(GroupKind::Tensor)], OVERLAPPED), [7.0, 7.0]);
    // Another kind has another stream; its group needs another number.
    let two = || {
        let mut events = one(GroupKind::Data);
        let LogEntry::Start(call) = &mut events[1] else { unreachable!("a call") };
        call.group = 1;
        events
    };
    assert_eq!(seconds([two(), two()], OVERLAPPED), [4.0, 4.0]);
}

#[test]
fn the_send_and_the_receive_of_an_exchange_run_together() {
    let send = |to, bytes, post| call(Operation::Send(to), GroupKind::Activations, bytes, post);
    let receive = |from, bytes, post| call(Operation::Receive(from), GroupKind::Activations, bytes, post);
    let first = vec![op(1), receive(1, 3, 1), send(1, 3, 1), LogEntry::Wait(0), LogEntry::Wait(1)];
    let second = vec![op(4), receive(0, 3, 1), send(0, 3, 1), LogEntry::Wait(0), op(2)];
    assert_eq!(seconds([first, second], OVERLAPPED), [7.0, 9.0]);
    // Blocking: the sender waits until its message has arrived, so the late receiver does not wait.
    let sends = vec![op(1), send(1, 3, 1), op(1)];
    let receives = vec![op(6), receive(0, 3, 1), LogEntry::Wait(0)];
    assert_eq!(seconds([sends, receives], CommMode::Blocking), [5.0, 6.0]);
}

#[test]
fn events_before_the_range_are_warm_up() {
    let events = vec![op(5), op(2), op(3), op(9)];
    let ranks = replay(&[(&log(0, events), 1..3)], &Units(OVERLAPPED));
    assert_eq!((ranks[0].seconds, ranks[0].busy[&OpClass::Matmul]), (5.0, 5.0));
}

#[test]
#[should_panic(expected = "rank 0, which waits for ever")]
fn a_call_that_is_never_met() {
    seconds([vec![gather(1, 1), LogEntry::Wait(0)], vec![op(1)]], OVERLAPPED);
}
