//! The judgement of a step: the norm and the clipping of its gradients, spikes, and numbers that are not finite.

use crate::backend::{Judgement, Rule, Total};

/// (norm of the mean loss's gradient, factor for the summed gradients, judgement); see
/// [`crate::backend::Backend::judge`]. Without counted targets only the auxiliary losses of
/// experts have gradients, which the trainer multiplied by at least 1 target.
pub fn judge(square: f32, totals: &[f32], state: &mut [f32], rule: Rule) -> [f32; 3] {
    let tokens = totals[Total::Weight as usize];
    let per_token = 1.0 / tokens.max(1.0);
    let (loss, norm) = (totals[Total::Loss as usize] * per_token, square.sqrt() * per_token);
    let shrink = if rule.clip > 0.0 { (rule.clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
    // After a step that is not finite none updates: the next one may be on its way before the host knows.
    let sound = loss.is_finite() && norm.is_finite() && state[0] >= 0.0;
    let judgement = match (sound, tokens > 0.0) {
        (false, _) => {
            state[0] = -1.0;
            Judgement::NotFinite
        }
        (true, false) => Judgement::Accepted,
        (true, true) => compare(loss, norm, state, rule),
    };
    let is_spike = matches!(judgement, Judgement::LossSpike | Judgement::NormSpike);
    let updates = judgement != Judgement::NotFinite && !(is_spike && rule.skips);
    [norm, if updates { shrink * per_token } else { f32::NAN }, judgement as usize as f32]
}

/// Compares a step with the last accepted ones, and adds it to them if it is accepted.
fn compare(loss: f32, norm: f32, state: &mut [f32], Rule { window, threshold, .. }: Rule) -> Judgement {
    let (counts, values) = state.split_at_mut(2);
    let (losses, norms) = values.split_at_mut(window);
    let is_full = counts[0] as usize == window && threshold > 0.0;
    if is_full && is_above(loss, losses, threshold) {
        return Judgement::LossSpike;
    }
    if is_full && is_above(norm, norms, threshold) {
        return Judgement::NormSpike;
    }
    let next = counts[1] as usize;
    (losses[next], norms[next]) = (loss, norm);
    counts[0] = (counts[0] + 1.0).min(window as f32);
    counts[1] = ((next + 1) % window) as f32;
    Judgement::Accepted
}

/// Whether x > mean + threshold * population standard deviation. With n values of sum S and sum of squares Q that is
/// n x - S > 0 and (n x - S)^2 > threshold^2 (n Q - S^2), without a division or a root.
fn is_above(x: f32, values: &[f32], threshold: f32) -> bool {
    let n = values.len() as f64;
    let (sum, squares) = values.iter().fold((0.0, 0.0), |(sum, squares), &v| {
        let v = f64::from(v);
        (sum + v, v.mul_add(v, squares))
    });
    let (above, t) = (n.mul_add(f64::from(x), -sum), f64::from(threshold));
    let spread = n.mul_add(squares, -(sum * sum));
    above > 0.0 && above * above > t * t * spread
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { clip: 0.0, window: 4, threshold: 2.0, skips: false };

    /// The judgements of steps with these losses and norms, of one token each.
    fn judgements(steps: &[(f32, f32)], rule: Rule) -> Vec<Judgement> {
        let mut state = vec![0.0; Rule::state_len(rule.window)];
        let judge = |(loss, norm): &(f32, f32)| {
            let [got, factor, judgement] = judge(norm * norm, &[*loss, 0.0, 1.0], &mut state, rule);
            let judgement = Judgement::of(judgement);
            let updates = match judgement {
                Judgement::Accepted => true,
                Judgement::NotFinite => false,
                _ => !rule.skips,
            };
            assert_eq!(factor.is_nan(), !updates, "{loss} {norm}");
            assert!(got == *norm || got.is_nan() || norm.is_nan());
            judgement
        };
        steps.iter().map(judge).collect()
    }

    use Judgement::{Accepted, LossSpike, NormSpike, NotFinite};

    #[test]
    fn a_spike_is_judged_by_the_last_accepted_steps() {
        // Mean 2.5, standard deviation sqrt(1.25) = 1.118 of each once four are there.
        let four = [(1.0, 1.0), (2.0, 4.0), (3.0, 2.0), (4.0, 3.0)];
        let with = |more: &[(f32, f32)], rule| judgements(&[&four[..], more].concat(), rule)[4..].to_vec();
        assert_eq!(judgements(&[(1.0, 1.0), (1.0, 1.0), (99.0, 99.0)], RULE), [Accepted; 3], "the window is not full");
        assert_eq!(with(&[(4.73, 2.0)], RULE), [Accepted]);
        // A spike enters no window: the same one is one again.
        assert_eq!(with(&[(4.74, 2.0), (4.74, 2.0), (2.0, 4.74)], RULE), [LossSpike, LossSpike, NormSpike]);
        // The oldest step leaves: (4, 4, 4, 4) after four more, where anything above is a spike.
        let flat = [(4.0, 1.0); 4];
        assert_eq!(with(&[&flat[..], &[(4.01, 1.0)]].concat(), RULE), [&[Accepted; 4][..], &[LossSpike]].concat());
        assert_eq!(with(&[(1e9, 1e9)], Rule { threshold: 0.0, ..RULE }), [Accepted]);
        assert_eq!(with(&[(1e9, 1.0)], Rule { skips: true, ..RULE }), [LossSpike]);
        assert_eq!(with(&[(-99.0, 0.0)], RULE), [Accepted], "below the mean");
    }

    #[test]
    fn numbers_that_are_not_finite_never_update() {
        let rule = Rule { threshold: 0.0, ..RULE };
        let steps = [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (1.0, f32::NAN), (1.0, f32::INFINITY)];
        for step in &steps[..4] {
            // The next one is none, either.
            assert_eq!(judgements(&[(1.0, 1.0), *step, (1.0, 1.0)], rule), [Accepted, NotFinite, NotFinite]);
        }
    }

    #[test]
    fn a_step_without_targets_enters_no_window() {
        let mut state = vec![0.0; Rule::state_len(4)];
        let judged = judge(4.0, &[0.0, 0.0, 0.0], &mut state, Rule { clip: 1.0, ..RULE });
        assert_eq!((judged[0], judged[2], state.iter().sum::<f32>()), (2.0, 0.0, 0.0));
        assert!((judged[1] - 0.5).abs() < 1e-6, "the gradient of auxiliary losses is clipped: {judged:?}");
    }
}
