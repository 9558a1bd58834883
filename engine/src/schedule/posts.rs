//! The places in a schedule where a stage starts its sends and receives: one rule for every schedule.

use super::{Action, Direction, Pipe, Work};

/// The first input of a direction is received just before its work. After each work, one group call sends its output
/// and receives the input of the direction's next work on this stage: at most one send and one receive per direction
/// are in flight.
///
/// A receive could start earlier, but a waiting NCCL kernel occupies SMs and a buffer, and training loses nothing as
/// long as a transfer is shorter than a forward (`tests.rs`).
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
