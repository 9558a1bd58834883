//! Who holds up a run in which nothing moves: a pure function of what all ranks have recorded.

use super::record::Channel;
use super::snapshot::{Blocked, Condition, Snapshot};
use serde::{Deserialize, Serialize};

/// A rank as the watchdogs see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    pub snapshot: Snapshot,
    pub condition: Condition,
    /// Seconds since it last made progress.
    pub idle: f64,
}

/// Why nothing moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The process of this rank has died.
    Died(usize),
    /// The process of this rank is stopped.
    Stopped(usize),
    /// No process of this rank's host answers.
    Silent(usize),
    /// This rank waits for nobody: it is busy, or stuck, at its place.
    Busy(usize),
    /// All ranks of the call have reached it, and it does not complete.
    Call(Blocked),
    /// Each of these ranks waits for the next, and the last for the first.
    Circle(Vec<usize>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub cause: Cause,
    /// The call in which the rank of `cause` is missing, where another rank waits for it there.
    pub missing: Option<Blocked>,
    /// The ranks that wait in that call.
    pub waiting: Vec<usize>,
}

/// Follows who waits for whom. `ranks[r]` is rank r, `None` where nobody knows it; `members(rank, channel)` are the
/// ranks of a rank's call.
pub fn verdict(ranks: &[Option<Seen>], members: &dyn Fn(usize, Channel) -> Vec<usize>) -> Verdict {
    let gone = |wanted: Condition| {
        let is = |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| seen.condition == wanted);
        ranks.iter().position(is)
    };
    let cause = match (gone(Condition::Died), gone(Condition::Stopped)) {
        (Some(rank), _) => Cause::Died(rank),
        (_, Some(rank)) => Cause::Stopped(rank),
        _ => follow(ranks, members),
    };
    let missing = rank_of(&cause).and_then(|rank| missing_in(rank, ranks, members));
    let call = match cause {
        Cause::Call(call) => Some(call),
        _ => missing,
    };
    let waiting = call.map_or(Vec::new(), |call| waiting_in(call, rank_of(&cause), ranks, members));
    Verdict { cause, missing, waiting }
}

fn rank_of(cause: &Cause) -> Option<usize> {
    match *cause {
        Cause::Died(rank) | Cause::Stopped(rank) | Cause::Silent(rank) | Cause::Busy(rank) => Some(rank),
        Cause::Call(_) | Cause::Circle(_) => None,
    }
}

fn blocked(seen: &Option<Seen>) -> Option<Blocked> {
    seen.as_ref().and_then(|seen| seen.snapshot.blocked)
}

/// From the first rank that waits to one that waits for nobody; where none waits, from the one that has been without
/// progress for longest.
fn follow(ranks: &[Option<Seen>], members: &dyn Fn(usize, Channel) -> Vec<usize>) -> Cause {
    let idle = |rank: &usize| ranks[*rank].as_ref().map_or(0.0, |seen| seen.idle);
    let longest = || (0..ranks.len()).max_by(|a, b| idle(a).total_cmp(&idle(b))).expect("a run has ranks");
    let first = ranks.iter().position(|seen| blocked(seen).is_some());
    let mut path = vec![first.unwrap_or_else(longest)];
    loop {
        let rank = *path.last().expect("the path has a first rank");
        if ranks[rank].is_none() {
            return Cause::Silent(rank);
        }
        let Some(call) = blocked(&ranks[rank]) else { return Cause::Busy(rank) };
        let Some(next) = awaited(rank, call, ranks, members) else { return Cause::Call(call) };
        if let Some(start) = path.iter().position(|&before| before == next) {
            return Cause::Circle(path.split_off(start));
        }
        path.push(next);
    }
}

/// A rank that the one in `call` waits for; `None` if all others are in the same call.
fn awaited(
    rank: usize,
    call: Blocked,
    ranks: &[Option<Seen>],
    members: &dyn Fn(usize, Channel) -> Vec<usize>,
) -> Option<usize> {
    if call.peer.is_some() {
        return call.peer;
    }
    let others: Vec<usize> = members(rank, call.channel).into_iter().filter(|&other| other != rank).collect();
    let started = |other: &usize| ranks[*other].as_ref().map(|seen| seen.snapshot.started[call.channel.index()]);
    let late = |other: &&usize| started(other).is_none_or(|number| number < call.number);
    let elsewhere = |other: &&usize| {
        let there = blocked(&ranks[**other]);
        there.is_none_or(|there| (there.channel, there.number) != (call.channel, call.number))
    };
    // A rank that waits for nobody explains more than one that waits elsewhere.
    let free = |other: &&usize| blocked(&ranks[**other]).is_none();
    let late: Vec<&usize> = others.iter().filter(late).collect();
    let candidates = if late.is_empty() { others.iter().filter(elsewhere).collect() } else { late };
    candidates.iter().copied().find(free).or(candidates.first().copied()).copied()
}

/// The oldest call in which another rank waits for `rank`.
fn missing_in(rank: usize, ranks: &[Option<Seen>], members: &dyn Fn(usize, Channel) -> Vec<usize>) -> Option<Blocked> {
    let waits = |other: usize| {
        let call = blocked(&ranks[other])?;
        let expects = match call.peer {
            Some(peer) => peer == rank,
            None => members(other, call.channel).contains(&rank),
        };
        let started = ranks[rank].as_ref().map_or(0, |seen| seen.snapshot.started[call.channel.index()]);
        (expects && other != rank).then_some((call.peer.is_none() && started >= call.number, call))
    };
    // A call that the rank has not even started says more than one that it started and left.
    (0..ranks.len()).filter_map(waits).min_by_key(|(has_started, _)| *has_started).map(|(_, call)| call)
}

/// The ranks that wait in `call`, for `missing` if that is known.
fn waiting_in(
    call: Blocked,
    missing: Option<usize>,
    ranks: &[Option<Seen>],
    members: &dyn Fn(usize, Channel) -> Vec<usize>,
) -> Vec<usize> {
    let in_call = |&rank: &usize| blocked(&ranks[rank]) == Some(call) && Some(rank) != missing;
    let mut waiting: Vec<usize> = (0..ranks.len()).filter(in_call).collect();
    // Other groups of the same kind may be in a call of the same number.
    let of_group = missing.or(waiting.first().copied());
    waiting.retain(|&rank| call.peer.is_some() || of_group.is_some_and(|r| members(rank, call.channel).contains(&r)));
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flight::Recorder;
    use crate::layout::mesh::GroupKind;

    const DATA: Channel = Channel::Group(GroupKind::Data);
    const TENSOR: Channel = Channel::Group(GroupKind::Tensor);

    /// A rank that has started so many calls of the data group and of the tensor group, and waits in one, or for a
    /// message of a peer.
    fn rank(data: u32, tensor: u32, waits: Option<(Channel, u32, Option<usize>)>) -> Option<Seen> {
        let recorder = Recorder::default();
        for _ in 0..data {
            recorder.start(DATA, "reduce-scatter", 8);
        }
        for _ in 0..tensor {
            recorder.start(TENSOR, "all-gather", 8);
        }
        if let Some((channel, number, peer)) = waits {
            std::mem::forget(recorder.wait(channel, number, peer));
        }
        Some(Seen { snapshot: recorder.snapshot(), condition: Condition::Runs, idle: 9.0 })
    }

    /// Four ranks: tensor groups 0, 1 and 2, 3; data groups 0, 2 and 1, 3.
    fn decide(ranks: &[Option<Seen>; 4]) -> Verdict {
        verdict(ranks, &|rank, channel| match channel {
            TENSOR => vec![rank & !1, rank | 1],
            DATA => vec![rank & 1, rank | 2],
            _ => (0..4).collect(),
        })
    }

    fn call(channel: Channel, number: u32) -> Option<Blocked> {
        Some(Blocked { channel, number, peer: None })
    }

    #[test]
    fn a_rank_that_has_not_reached_a_call_is_missing_in_it() {
        // 3 computes; 1 waits for it in data #2, 0 waits for 1 in tensor #5, 2 waits for 3 in tensor #4.
        let ranks = [
            rank(2, 5, Some((TENSOR, 5, None))),
            rank(2, 4, Some((DATA, 2, None))),
            rank(2, 4, Some((TENSOR, 4, None))),
            rank(1, 3, None),
        ];
        let verdict = decide(&ranks);
        assert_eq!((verdict.cause, verdict.missing), (Cause::Busy(3), call(DATA, 2)));
        assert_eq!(verdict.waiting, [1]);
    }

    #[test]
    fn a_stopped_or_dead_rank_is_the_cause_wherever_it_was() {
        let mut ranks = [
            rank(1, 1, Some((DATA, 1, None))),
            rank(0, 1, Some((TENSOR, 1, None))),
            rank(1, 1, Some((DATA, 1, None))),
            rank(1, 1, Some((DATA, 1, None))),
        ];
        ranks[1].as_mut().unwrap().condition = Condition::Stopped;
        let verdict = decide(&ranks);
        // Ranks 0 and 2 are in a call of the same kind and number, of another group.
        assert_eq!((verdict.cause, verdict.missing, verdict.waiting), (Cause::Stopped(1), call(DATA, 1), vec![3]));
        // It may have been stopped while it waited itself.
        ranks[1] = rank(1, 0, Some((DATA, 1, None)));
        ranks[1].as_mut().unwrap().condition = Condition::Stopped;
        assert_eq!(decide(&ranks).waiting, [3]);
        ranks[2].as_mut().unwrap().condition = Condition::Died;
        assert_eq!(decide(&ranks).cause, Cause::Died(2));
    }

    #[test]
    fn where_nobody_waits_the_rank_without_progress_is_the_cause() {
        let mut ranks = [(); 4].map(|()| rank(1, 1, None));
        ranks.iter_mut().flatten().for_each(|seen| seen.idle = 0.5);
        ranks[2].as_mut().unwrap().idle = 9.0;
        assert_eq!(decide(&ranks).cause, Cause::Busy(2));
    }

    #[test]
    fn a_rank_that_nobody_knows_is_silent() {
        let wait = |n| Some((Channel::Host, n, None));
        let verdict = decide(&[rank(0, 0, wait(7)), rank(0, 0, wait(7)), None, rank(0, 0, wait(7))]);
        assert_eq!((verdict.cause, verdict.missing), (Cause::Silent(2), call(Channel::Host, 7)));
        assert_eq!(verdict.waiting, [0, 1, 3]);
    }

    #[test]
    fn a_call_that_all_have_reached_is_the_networks() {
        let verdict = decide(&[(); 4].map(|()| rank(3, 0, Some((DATA, 3, None)))));
        assert_eq!((verdict.cause, verdict.missing), (Cause::Call(call(DATA, 3).unwrap()), None));
        assert_eq!(verdict.waiting, [0, 2], "the other group is in a call of its own");
    }

    #[test]
    fn messages_are_followed_to_their_sender_and_circles_are_seen() {
        let gradients = Channel::Group(GroupKind::Gradients);
        let from = |peer| Some((gradients, 1, Some(peer)));
        let busy = decide(&[rank(0, 0, from(1)), rank(0, 0, from(2)), rank(0, 0, None), rank(0, 0, from(2))]);
        let peer = Blocked { channel: gradients, number: 1, peer: Some(2) };
        assert_eq!((busy.cause, busy.missing, busy.waiting), (Cause::Busy(2), Some(peer), vec![1, 3]));
        let circle = decide(&[rank(0, 0, from(1)), rank(0, 0, from(2)), rank(0, 0, from(1)), rank(0, 0, from(2))]);
        assert_eq!(circle.cause, Cause::Circle(vec![1, 2]));
    }
}
