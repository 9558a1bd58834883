//! Small logs whose times can be told by hand: an op takes a second for each of its rows, a call for each of its bytes.

use super::*;
use engine::dry::{Keep, Log};

struct Units(Manner);

impl Costs for Units {
    fn op(&self, _: &'static str, sizes: [usize; 3]) -> f64 {
        sizes[0] as f64
    }

    fn call(&self, _: usize, call: &Call) -> f64 {
        call.bytes as f64
    }

    fn part(&self, _: Scope) -> f64 {
        0.0
    }

    fn manner(&self, _: GroupKind) -> Manner {
        self.0
    }
}

const BESIDE: Manner = Manner::Beside { slowdown: 0.0 };

fn op(seconds: usize) -> LogEntry {
    LogEntry::Op { name: "matmul_nt", sizes: [seconds, 1, 1] }
}

fn call(what: What, kind: GroupKind, bytes: usize, post: usize) -> LogEntry {
    LogEntry::Start(Call { group: 0, kind, members: [0, 1].into(), what, bytes, post })
}

fn gather(bytes: usize, post: usize) -> LogEntry {
    call(What::AllGather, GroupKind::Tensor, bytes, post)
}

fn log(rank: usize, events: Vec<LogEntry>) -> Log {
    let mut log = Log::new(rank, Keep::Ops);
    log.events = events;
    log
}

/// Seconds of each rank, all of whose events count.
fn seconds(ranks: [Vec<LogEntry>; 2], manner: Manner) -> [f64; 2] {
    let logs: Vec<Log> = ranks.into_iter().enumerate().map(|(rank, events)| log(rank, events)).collect();
    let told: Vec<_> = logs.iter().map(|log| (log, 0..log.events.len())).collect();
    let ran = replay(&told, &Units(manner));
    for ran in &ran {
        let told: f64 = ran.busy.values().chain(ran.exposed.values()).sum();
        assert!((told - ran.seconds).abs() < 1e-9, "{ran:?}");
    }
    [ran[0].seconds, ran[1].seconds]
}

#[test]
fn a_call_goes_on_beside_what_computes() {
    let rank = || vec![op(2), gather(5, 1), op(3), LogEntry::Wait(0), op(1)];
    assert_eq!(seconds([rank(), rank()], BESIDE), [8.0, 8.0], "2, then 5 of which 3 are hidden, then 1");
    assert_eq!(seconds([rank(), rank()], Manner::Alone), [11.0, 11.0], "nothing is hidden");
    assert_eq!(seconds([rank(), rank()], Manner::ByCompute), [11.0, 11.0], "the cores do it");
    let slower = Manner::Beside { slowdown: 0.2 };
    assert_eq!(
        seconds([rank(), rank()], slower)[0],
        8.6,
        "the op after the wait pays a fifth of the 3 s that were hidden"
    );
}

#[test]
fn a_call_begins_when_all_have_come() {
    let late = vec![op(7), gather(1, 1), LogEntry::Wait(0)];
    let early = vec![op(1), gather(1, 1), op(1), LogEntry::Wait(0)];
    assert_eq!(seconds([late, early], BESIDE), [8.0, 8.0]);
}

#[test]
fn calls_of_a_kind_are_one_after_another() {
    let one = |kind| vec![gather(3, 1), call(What::AllGather, kind, 4, 2), LogEntry::Wait(0), LogEntry::Wait(1)];
    assert_eq!(seconds([one(GroupKind::Tensor), one(GroupKind::Tensor)], BESIDE), [7.0, 7.0]);
    // Another kind has another stream; the numbers of groups must differ then.
    let two = || {
        let mut events = one(GroupKind::Data);
        let LogEntry::Start(call) = &mut events[1] else { unreachable!("a call") };
        call.group = 1;
        events
    };
    assert_eq!(seconds([two(), two()], BESIDE), [4.0, 4.0]);
}

#[test]
fn halves_of_an_exchange_travel_together() {
    let send = |to, bytes, post| call(What::Send(to), GroupKind::Activations, bytes, post);
    let receive = |from, bytes, post| call(What::Receive(from), GroupKind::Activations, bytes, post);
    let first = vec![op(1), receive(1, 3, 1), send(1, 3, 1), LogEntry::Wait(0), LogEntry::Wait(1)];
    let second = vec![op(4), receive(0, 3, 1), send(0, 3, 1), LogEntry::Wait(0), op(2)];
    assert_eq!(seconds([first, second], BESIDE), [7.0, 9.0]);
    // A sender that stands still while its message travels, and a receiver that finds it there.
    let sends = vec![op(1), send(1, 3, 1), op(1)];
    let receives = vec![op(6), receive(0, 3, 1), LogEntry::Wait(0)];
    assert_eq!(seconds([sends, receives], Manner::Alone), [5.0, 6.0]);
}

#[test]
fn what_comes_before_is_warm_up() {
    let events = vec![op(5), op(2), op(3), op(9)];
    let ran = replay(&[(&log(0, events), 1..3)], &Units(BESIDE));
    assert_eq!((ran[0].seconds, ran[0].busy[&Class::Matmul]), (5.0, 5.0));
}

#[test]
#[should_panic(expected = "rank 0: it waits for ever")]
fn a_call_that_is_never_met() {
    seconds([vec![gather(1, 1), LogEntry::Wait(0)], vec![op(1)]], BESIDE);
}
