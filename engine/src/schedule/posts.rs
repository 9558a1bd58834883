//! Where a stage posts its transfers: one rule for any order of works.

use super::{Action, Direction, Pipe, Work};

/// A flow's first input is posted just before its work. After each work one group sends its output and
/// asks for the input of the flow's next work here, so a flow has at most one transfer each way open.
///
/// An input could be asked for earlier, but a group that waits holds a part of a device and a block of
/// memory, and in training nothing is lost by it while a transfer is shorter than a forward (`tests.rs`).
pub fn insert(stage: usize, pipe: &Pipe, order: &[Action]) -> Vec<Action> {
    let elsewhere = |place: Option<(usize, usize)>| place.is_some_and(|(peer, _)| peer != stage);
    let post = |direction: Direction, made: Option<Work>, wanted: Option<Work>| {
        let send = made.filter(|work| elsewhere(pipe.target(direction, stage, work.chunk)));
        let recv = wanted.filter(|work| elsewhere(pipe.source(direction, stage, work.chunk)));
        (send.is_some() || recv.is_some()).then_some(Action::SendRecv { direction, send, recv })
    };
    let mut actions = Vec::with_capacity(2 * order.len() + 2);
    let mut begun = Vec::new();
    for (i, &action) in order.iter().enumerate() {
        let (direction, work) = action.work().expect("an order of works");
        if !begun.contains(&direction) {
            begun.push(direction);
            actions.extend(post(direction, None, Some(work)));
        }
        actions.push(action);
        let mut later = order[i + 1..].iter().filter_map(|action| action.work());
        let next = later.find(|&(other, _)| other == direction).map(|(_, work)| work);
        actions.extend(post(direction, Some(work), next));
    }
    actions
}
