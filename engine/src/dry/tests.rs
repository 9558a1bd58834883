//! The deadlock checker against orders of collectives written by hand.

pub(crate) mod order;

use super::log::{Call, Keep, Log, What};
use crate::layout::mesh::GroupKind;
use order::{Disorder, check};

/// Calls that are started together.
type Post<'a> = Vec<(GroupKind, &'a [usize], What)>;

/// What a rank does; `None` waits for all that was started so far.
fn log(rank: usize, steps: &[Option<Post>]) -> Log {
    let (mut log, mut waited) = (Log::new(rank, Keep::Calls), 0);
    let mut started = 0;
    for step in steps {
        let Some(calls) = step else {
            (waited..started).for_each(|start| log.wait(start));
            waited = started;
            continue;
        };
        let post = log.post();
        for &(kind, members, what) in calls {
            log.start(Call { group: kind as usize, kind, members: members.into(), what, bytes: 64, post });
            started += 1;
        }
    }
    log
}

fn all(kind: GroupKind, members: &[usize]) -> Option<Post<'_>> {
    Some(vec![(kind, members, What::AllReduce)])
}

fn message(kind: GroupKind, whats: &[What]) -> Option<Post<'static>> {
    Some(whats.iter().map(|&what| (kind, &[0, 1][..], what)).collect())
}

fn cycle(logs: &[Log]) -> Vec<String> {
    match check(logs) {
        Err(Disorder::Cycle(steps)) => steps,
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_groups_in_opposite_orders_lock_where_they_are_waited_for() {
    let (tensor, data) = (all(GroupKind::Tensor, &[0, 1]), all(GroupKind::Data, &[0, 1]));
    let waiting =
        [log(0, &[tensor.clone(), None, data.clone(), None]), log(1, &[data.clone(), None, tensor.clone(), None])];
    let steps = cycle(&waiting);
    assert_eq!(steps.len(), 4, "{steps:?}");
    assert!(steps.iter().any(|step| step.starts_with("rank 1 waits for call 0 of the Data group [0, 1]")), "{steps:?}");
    // Streams of their own: nothing waits between the two.
    let flowing = [log(0, &[tensor.clone(), data.clone(), None]), log(1, &[data, tensor, None])];
    assert_eq!(check(&flowing), Ok(()));
}

#[test]
fn three_ranks_and_three_groups_can_lock_in_a_ring() {
    let pairs: [&[usize]; 3] = [&[0, 1], &[1, 2], &[0, 2]];
    let [a, b, c] = [0, 1, 2].map(|i| all([GroupKind::Tensor, GroupKind::Data, GroupKind::Tied][i], pairs[i]));
    let ring = |last: [&Option<_>; 2]| {
        let of = |rank, [first, then]: [&Option<Vec<_>>; 2]| log(rank, &[first.clone(), None, then.clone(), None]);
        [of(0, [&a, &c]), of(1, [&b, &a]), of(2, last)]
    };
    assert_eq!(cycle(&ring([&c, &b])).len(), 6);
    assert_eq!(check(&ring([&b, &c])), Ok(()));
}

#[test]
fn messages_meet_in_one_exchange_and_not_in_two() {
    let (kind, send, receive) = (GroupKind::Activations, What::Send, What::Receive);
    let together = [
        log(0, &[message(kind, &[receive(1), send(1)]), None]),
        log(1, &[message(kind, &[receive(0), send(0)]), None]),
    ];
    assert_eq!(check(&together), Ok(()));
    // One stream: the first send stays in front of the receive that the other side's first send needs.
    let apart = [
        log(0, &[message(kind, &[send(1)]), message(kind, &[receive(1)]), None]),
        log(1, &[message(kind, &[send(0)]), message(kind, &[receive(0)]), None]),
    ];
    assert!(cycle(&apart).iter().any(|step| step.contains("on the stream of Activations")));
}

#[test]
fn a_message_that_nobody_takes_is_missing() {
    let logs = [log(0, &[message(GroupKind::Gradients, &[What::Send(1)])]), log(1, &[])];
    let Err(Disorder::Missing(what)) = check(&logs) else { panic!("{:?}", check(&logs)) };
    assert_eq!(what, "rank 1 never makes message 0 of Gradients from rank 0 to rank 1 (64 bytes)");
}
