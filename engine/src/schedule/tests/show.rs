//! Schedules as text, for golden tests and for finding a deadlock.
//!
//! `F3` is the forward of micro-batch 3, `B3` its backward; where a stage holds several chunks, `F3.1` is the forward
//! through its chunk 1. `>+3-4` posts a send of the activations that `F3` made and a receive of those that `F4` needs;
//! `<+3-4` does the same for the gradients of `B3` and `B4`.

use super::{Action, Direction, Work};

/// The actions in one line.
pub fn show(actions: &[Action]) -> String {
    words(actions).join(" ")
}

/// The actions in one line with an arrow before action `at`, or at the end if all are done.
pub fn show_at(actions: &[Action], at: usize) -> String {
    let mut words = words(actions);
    words.insert(at, "-->".into());
    words.join(" ")
}

fn words(actions: &[Action]) -> Vec<String> {
    let chunked = actions.iter().filter_map(|action| action.work()).any(|(_, work)| work.chunk > 0);
    let name = |work: Work| if chunked { format!("{}.{}", work.mb, work.chunk) } else { work.mb.to_string() };
    let word = |action: &Action| match *action {
        Action::Forward(work) => format!("F{}", name(work)),
        Action::Backward(work) => format!("B{}", name(work)),
        Action::SendRecv { direction, send, recv } => {
            let mut word = String::from(if direction == Direction::Activations { ">" } else { "<" });
            word.extend(send.map(|work| format!("+{}", name(work))));
            word.extend(recv.map(|work| format!("-{}", name(work))));
            word
        }
    };
    actions.iter().map(word).collect()
}
