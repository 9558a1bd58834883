//! The order of a stage's forwards and backwards, without a word on transfers.

use super::{Action, Pipe, Work};

/// 1F1B (Narayanan et al. 2021): the stage runs `stages - 1 - stage` forwards ahead, then alternates,
/// so it holds at most `stages - stage` micro-batches.
pub fn one_f_one_b(stage: usize, pipe: &Pipe) -> Vec<Action> {
    assert_eq!(pipe.chunks, 1, "1F1B with {} chunks a stage", pipe.chunks);
    weave(works(stage, pipe), pipe, pipe.stages - 1 - stage)
}

/// Interleaved 1F1B as Megatron-LM's: the stage runs as many micro-batches as there are stages through
/// each of its chunks in turn. To be ready for the first backward it must have taken the first of them
/// through all chunks but the last, and twice the way to the last stage lies ahead of that.
pub fn interleaved(stage: usize, pipe: &Pipe) -> Vec<Action> {
    let Pipe { stages, chunks, n_mbs } = *pipe;
    assert!(stages > 1, "interleaving {chunks} chunks on {stages} stage");
    assert!(n_mbs.is_multiple_of(stages), "interleaving {n_mbs} micro-batches over {stages} stages");
    weave(works(stage, pipe), pipe, 2 * (stages - 1 - stage) + (chunks - 1) * stages)
}

/// Forwards alone, in the order of either schedule; the last group may be smaller.
pub fn forwards(stage: usize, pipe: &Pipe) -> Vec<Action> {
    works(stage, pipe).into_iter().map(Action::Forward).collect()
}

/// In groups of as many micro-batches as there are stages, each group through chunk after chunk: the
/// group's first comes round from the last stage just when its last has left the first.
fn works(stage: usize, pipe: &Pipe) -> Vec<Work> {
    let Pipe { stages, chunks, n_mbs } = *pipe;
    assert!(stage < stages, "stage {stage} of {stages}");
    assert!(chunks > 0 && n_mbs > 0, "{chunks} chunks a stage, {n_mbs} micro-batches");
    let group = |first: usize| {
        let mbs = first..(first + stages).min(n_mbs);
        (0..chunks).flat_map(move |chunk| mbs.clone().map(move |mb| Work { chunk, mb }))
    };
    (0..n_mbs).step_by(stages).flat_map(group).collect()
}

/// `ahead` forwards, then one forward and one backward in turn, then the backwards that are left.
fn weave(forwards: Vec<Work>, pipe: &Pipe, ahead: usize) -> Vec<Action> {
    let ahead = ahead.min(forwards.len());
    // Backwards leave by the chunks in the opposite order.
    let mut backwards =
        forwards.iter().map(|work| Action::Backward(Work { chunk: pipe.chunks - 1 - work.chunk, ..*work }));
    let mut actions = Vec::with_capacity(2 * forwards.len());
    for (i, &work) in forwards.iter().enumerate() {
        actions.push(Action::Forward(work));
        if i >= ahead {
            actions.extend(backwards.next());
        }
    }
    actions.extend(backwards);
    actions
}
