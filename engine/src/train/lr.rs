//! Learning-rate schedules, as pure functions of the step.

use crate::config::{DecayShape, Optimizer, Schedule};
use std::f64::consts::PI;

/// The learning rate of `step` (the first is 1) in a run of `steps`.
///
/// Linear warm-up `lr * step / warmup`, then from `lr` at the warm-up's end to `min_lr` at the last step.
pub fn learning_rate(o: &Optimizer, steps: u64, step: u64) -> f64 {
    assert!(step >= 1, "the first step is 1, not {step}");
    if step <= o.warmup_steps {
        return o.lr * step as f64 / o.warmup_steps as f64;
    }
    let range = o.lr - o.min_lr;
    match o.schedule {
        Schedule::Cosine => o.min_lr + range * (1.0 + (PI * fraction(o.warmup_steps, step, steps)).cos()) / 2.0,
        Schedule::Linear => o.lr - range * fraction(o.warmup_steps, step, steps),
        Schedule::Constant => o.lr,
        Schedule::Wsd => {
            let r = fraction(steps.saturating_sub(o.decay_steps.unwrap_or(0)), step, steps);
            match o.decay_shape.unwrap_or(DecayShape::Linear) {
                DecayShape::Linear => o.lr - range * r,
                DecayShape::OneMinusSqrt => o.lr - range * r.sqrt(),
            }
        }
    }
}

/// The fraction of the way from `start` to `end` at `step`: 0 up to the start, 1 from the end on.
fn fraction(start: u64, step: u64, end: u64) -> f64 {
    match end.saturating_sub(start) {
        0 => 1.0,
        length => step.saturating_sub(start).min(length) as f64 / length as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn optimizer(schedule: Schedule) -> Optimizer {
        Optimizer {
            lr: 1e-3,
            min_lr: 1e-4,
            schedule,
            decay_steps: None,
            decay_shape: None,
            warmup_steps: 4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            clip_grad: 1.0,
        }
    }

    fn wsd(decay_steps: u64, shape: DecayShape) -> Optimizer {
        let (decay_steps, decay_shape) = (Some(decay_steps), Some(shape));
        Optimizer { decay_steps, decay_shape, ..optimizer(Schedule::Wsd) }
    }

    /// Steps 1, 4, 8, 12 and 20 of 20, the first 4 of warm-up.
    fn at_five_steps(o: Optimizer) -> [f64; 5] {
        [1, 4, 8, 12, 20].map(|step| learning_rate(&o, 20, step))
    }

    fn assert_close(got: [f64; 5], want: [f64; 5]) {
        let close = got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-15);
        assert!(close, "{got:?} is not {want:?}");
    }

    #[test]
    fn the_schedules_of_the_interface() {
        let quarter = 1e-4 + 9e-4 * (1.0 + 0.5f64.sqrt()) / 2.0;
        assert_close(at_five_steps(optimizer(Schedule::Cosine)), [2.5e-4, 1e-3, quarter, 5.5e-4, 1e-4]);
        assert_close(at_five_steps(optimizer(Schedule::Linear)), [2.5e-4, 1e-3, 7.75e-4, 5.5e-4, 1e-4]);
        assert_close(at_five_steps(optimizer(Schedule::Constant)), [2.5e-4, 1e-3, 1e-3, 1e-3, 1e-3]);
        assert_close(at_five_steps(wsd(10, DecayShape::Linear)), [2.5e-4, 1e-3, 1e-3, 8.2e-4, 1e-4]);
        let sqrt = [2.5e-4, 1e-3, 1e-3, 1e-3 - 9e-4 * 0.2f64.sqrt(), 1e-4];
        assert_close(at_five_steps(wsd(10, DecayShape::OneMinusSqrt)), sqrt);
    }

    /// An optimizer, and the steps of its run.
    fn runs() -> impl Strategy<Value = (Optimizer, u64)> {
        let shape = prop_oneof![Just(DecayShape::Linear), Just(DecayShape::OneMinusSqrt)];
        (1u64..500, 0.0..1.0, 0.0..1.0, shape, 0usize..3).prop_map(|(steps, warmup, decay, shape, kind)| {
            let warmup = (warmup * steps as f64) as u64;
            let decay_steps = 1 + (decay * (steps - warmup - 1) as f64) as u64;
            let all = [optimizer(Schedule::Cosine), optimizer(Schedule::Linear), wsd(decay_steps, shape)];
            (Optimizer { warmup_steps: warmup, ..all[kind].clone() }, steps)
        })
    }

    proptest! {
        #[test]
        fn rises_to_lr_then_falls_to_min_lr((o, steps) in runs()) {
            let rates: Vec<f64> = (1..=steps).map(|step| learning_rate(&o, steps, step)).collect();
            prop_assert!(rates.iter().all(|&rate| rate > 0.0 && rate <= o.lr * (1.0 + 1e-15)));
            prop_assert!((rates[rates.len() - 1] - o.min_lr).abs() < 1e-15);
            let (up, down) = rates.split_at(o.warmup_steps as usize);
            prop_assert!(up.is_sorted());
            prop_assert!(down.is_sorted_by(|a, b| a >= b));
            prop_assert_eq!(up.last().copied().unwrap_or(o.lr), o.lr);
        }
    }
}
