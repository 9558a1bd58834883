//! The order of a stage's forwards and backwards; `posts.rs` adds the transfers.

use super::{Action, Pipe, Work};

/// 1F1B (Narayanan et al. 2021): `stages - 1 - stage` warm-up forwards, then one forward and one backward in turn. A
/// stage holds at most `stages - stage` micro-batches.
pub fn one_f_one_b(stage: usize, pipe: &Pipe) -> Vec<Action> {
    assert_eq!(pipe.chunks, 1, "1F1B with {} chunks a stage", pipe.chunks);
    weave(works(stage, pipe), pipe, pipe.stages - 1 - stage)
}

/// Interleaved 1F1B as in Megatron-LM: groups of `stages` micro-batches go through each chunk in turn. Before the first
/// backward a stage must have run a whole group through all chunks but the last, plus two forwards for each stage
/// between it and the last one.
pub fn interleaved(stage: usize, pipe: &Pipe) -> Vec<Action> {
    let Pipe { stages, chunks, n_mbs } = *pipe;
    assert!(stages > 1, "interleaving {chunks} chunks on {stages} stage");
    assert!(n_mbs.is_multiple_of(stages), "interleaving {n_mbs} micro-batches over {stages} stages");
    weave(works(stage, pipe), pipe, 2 * (stages - 1 - stage) + (chunks - 1) * stages)
}

/// The forwards alone, in the same order; the last group may be smaller.
pub fn forwards(stage: usize, pipe: &Pipe) -> Vec<Action> {
    works(stage, pipe).into_iter().map(Action::Forward).collect()
}

/// Groups of `stages` micro-batches, each group through chunk after chunk: the group's first micro-batch comes back
/// from the last stage just when its last one has left the first stage.
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

/// `ahead` warm-up forwards, then one forward and one backward in turn, then the remaining backwards.
fn weave(forwards: Vec<Work>, pipe: &Pipe, ahead: usize) -> Vec<Action> {
    let ahead = ahead.min(forwards.len());
    // Backwards go through the chunks in the opposite order.
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
