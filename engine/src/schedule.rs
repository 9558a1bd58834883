//! The order in which a stage works through its micro-batches: a pure function, executed by
//! `pipeline.rs`. One rank runs the same schedule as many.

/// One thing that a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Forward { mb: usize },
    Backward { mb: usize },
}

/// 1F1B (Narayanan et al. 2021): stage `stage` of `stages` runs `stages - 1 - stage` forwards ahead,
/// then alternates, so it holds at most `stages - stage` micro-batches.
pub fn one_f_one_b(stage: usize, stages: usize, n_mbs: usize) -> Vec<Action> {
    assert!(stage < stages, "stage {stage} of {stages}");
    let ahead = (stages - 1 - stage).min(n_mbs);
    let mut actions: Vec<Action> = (0..ahead).map(|mb| Action::Forward { mb }).collect();
    for mb in ahead..n_mbs {
        actions.push(Action::Forward { mb });
        actions.push(Action::Backward { mb: mb - ahead });
    }
    actions.extend((n_mbs - ahead..n_mbs).map(|mb| Action::Backward { mb }));
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_micro_batch_goes_forth_and_back_once_and_few_are_held() {
        for stages in 1..=16 {
            for stage in 0..stages {
                for n_mbs in 1..=48 {
                    let (mut forward, mut backward, mut most) = (0, 0, 0);
                    for action in one_f_one_b(stage, stages, n_mbs) {
                        match action {
                            Action::Forward { mb } => {
                                assert_eq!(mb, forward);
                                forward += 1;
                            }
                            Action::Backward { mb } => {
                                assert_eq!(mb, backward);
                                assert!(mb < forward, "backward of {mb} before its forward");
                                backward += 1;
                            }
                        }
                        most = most.max(forward - backward);
                    }
                    assert_eq!((forward, backward), (n_mbs, n_mbs));
                    assert_eq!(most, (stages - stage).min(n_mbs));
                }
            }
        }
    }

    #[test]
    fn one_stage_alternates() {
        use Action::{Backward as B, Forward as F};
        assert_eq!(one_f_one_b(0, 1, 2), [F { mb: 0 }, B { mb: 0 }, F { mb: 1 }, B { mb: 1 }]);
    }
}
