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
        Schedule::Cosine => o.min_lr + range * (1.0 + (PI * part(o.warmup_steps, step, steps)).cos()) / 2.0,
        Schedule::Linear => o.lr - range * part(o.warmup_steps, step, steps),
        Schedule::Constant => o.lr,
        Schedule::Wsd { decay_steps, shape } => {
            let r = part(steps.saturating_sub(decay_steps), step, steps);
            match shape {
                DecayShape::Linear => o.lr - range * r,
                DecayShape::OneMinusSqrt => o.lr - range * r.sqrt(),
            }
        }
    }
}

/// How far `step` is on the way from `start` to `end`: 0 before it, 1 at and after the end.
fn part(start: u64, step: u64, end: u64) -> f64 {
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
        let (lr, min_lr, warmup_steps, betas) = (1e-3, 1e-4, 4, [0.9, 0.95]);
        Optimizer { lr, min_lr, schedule, warmup_steps, betas, eps: 1e-8, weight_decay: 0.1, clip_grad: 1.0 }
    }

    /// Steps 1, 4, 8, 12 and 20 of 20, the first 4 of warm-up.
    fn at_five_steps(schedule: Schedule) -> [f64; 5] {
        [1, 4, 8, 12, 20].map(|step| learning_rate(&optimizer(schedule), 20, step))
    }

    fn assert_close(got: [f64; 5], want: [f64; 5]) {
        let close = got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-15);
        assert!(close, "{got:?} is not {want:?}");
    }

    #[test]
    fn the_schedules_of_the_interface() {
        let quarter = 1e-4 + 9e-4 * (1.0 + 0.5f64.sqrt()) / 2.0;
        assert_close(at_five_steps(Schedule::Cosine), [2.5e-4, 1e-3, quarter, 5.5e-4, 1e-4]);
        assert_close(at_five_steps(Schedule::Linear), [2.5e-4, 1e-3, 7.75e-4, 5.5e-4, 1e-4]);
        assert_close(at_five_steps(Schedule::Constant), [2.5e-4, 1e-3, 1e-3, 1e-3, 1e-3]);
        let linear = Schedule::Wsd { decay_steps: 10, shape: DecayShape::Linear };
        assert_close(at_five_steps(linear), [2.5e-4, 1e-3, 1e-3, 8.2e-4, 1e-4]);
        let sqrt = Schedule::Wsd { decay_steps: 10, shape: DecayShape::OneMinusSqrt };
        assert_close(at_five_steps(sqrt), [2.5e-4, 1e-3, 1e-3, 1e-3 - 9e-4 * 0.2f64.sqrt(), 1e-4]);
    }

    fn schedules() -> impl Strategy<Value = (Schedule, u64, u64)> {
        let shape = prop_oneof![Just(DecayShape::Linear), Just(DecayShape::OneMinusSqrt)];
        (1u64..500, 0.0..1.0, 0.0..1.0, shape, 0usize..3).prop_map(|(steps, warmup, decay, shape, kind)| {
            let warmup = (warmup * steps as f64) as u64;
            let decay_steps = 1 + (decay * (steps - warmup - 1) as f64) as u64;
            let all = [Schedule::Cosine, Schedule::Linear, Schedule::Wsd { decay_steps, shape }];
            (all[kind], steps, warmup)
        })
    }

    proptest! {
        #[test]
        fn rises_to_lr_then_falls_to_min_lr((schedule, steps, warmup_steps) in schedules()) {
            let o = Optimizer { warmup_steps, ..optimizer(schedule) };
            let rates: Vec<f64> = (1..=steps).map(|step| learning_rate(&o, steps, step)).collect();
            prop_assert!(rates.iter().all(|&rate| rate > 0.0 && rate <= o.lr * (1.0 + 1e-15)));
            prop_assert!((rates[rates.len() - 1] - o.min_lr).abs() < 1e-15);
            let (up, down) = rates.split_at(warmup_steps as usize);
            prop_assert!(up.is_sorted());
            prop_assert!(down.is_sorted_by(|a, b| a >= b));
            prop_assert_eq!(up.last().copied().unwrap_or(o.lr), o.lr);
        }
    }
}
