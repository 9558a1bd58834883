//! Cross-entropy over the columns of the vocabulary that this rank holds: loss = log Z - logit of the target,
//! log Z = max + log(sum of exp(logit - max)). Statistics of a row are (max, sum, target's logit). With a soft-cap, all
//! this is of c = cap tanh(logit / cap), and the gradient is also multiplied by dc/dlogit = 1 - (c / cap)^2.

use crate::backend::Xent;
use crate::cpu::float::Float;
use crate::cpu::simd::{LANES, exp, max_lanes, sum_lanes, tanh, vectorized};
use crate::cpu::workers::Workers;

/// Rows of a task; a row is long.
const ROWS: usize = 4;

/// The statistics `[C, 3]` of the logits `[C, V]`.
pub fn xent_stats<A: Float>(
    workers: &Workers,
    logits: &[A],
    cols: usize,
    targets: &[u32],
    of: Xent,
    stats: &mut [f32],
) {
    let tasks = logits.chunks(ROWS * cols).zip(targets.chunks(ROWS)).zip(stats.chunks_mut(ROWS * 3));
    workers.each(tasks, |((logits, targets), stats)| {
        let rows = logits.chunks_exact(cols).zip(targets).zip(stats.as_chunks_mut().0);
        for ((logits, &target), stats) in rows {
            let (max, sum) = match of.cap {
                None => max_and_sum(logits),
                Some(cap) => max_and_sum_capped(logits, cap),
            };
            let held = (target as usize).checked_sub(of.first).and_then(|at| logits.get(at));
            *stats = [max, sum, held.map_or(f32::NEG_INFINITY, |x| capped(x.load(), of.cap))];
        }
    });
}

vectorized! {
    fn max_and_sum<A: Float>(logits: &[A]) -> (f32, f32) {
        let (whole, rest) = logits.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for x in whole {
            for i in 0..LANES {
                lanes[i] = if x[i].load() > lanes[i] { x[i].load() } else { lanes[i] };
            }
        }
        let max = rest.iter().fold(max_lanes(lanes), |max, x| if x.load() > max { x.load() } else { max });
        let mut sums = [0.0f32; LANES];
        for x in whole {
            for i in 0..LANES {
                sums[i] += exp(x[i].load() - max);
            }
        }
        let rest: f32 = rest.iter().map(|x| exp(x.load() - max)).sum();
        (max, sum_lanes(sums) + rest)
    }
}

/// The logit that the loss is of.
fn capped(logit: f32, cap: Option<f32>) -> f32 {
    cap.map_or(logit, |cap| cap * tanh(logit / cap))
}

vectorized! {
    /// The maximum and sum of soft-capped logits: the cap keeps their order, so that the maximum is that of the logits.
    fn max_and_sum_capped<A: Float>(logits: &[A], cap: f32) -> (f32, f32) {
        let most = logits.iter().fold(f32::NEG_INFINITY, |most, x| if x.load() > most { x.load() } else { most });
        let max = cap * tanh(most / cap);
        let (whole, rest) = logits.as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for x in whole {
            for i in 0..LANES {
                sums[i] += exp(cap * tanh(x[i].load() / cap) - max);
            }
        }
        let rest: f32 = rest.iter().map(|x| exp(cap * tanh(x.load() / cap) - max)).sum();
        (max, sum_lanes(sums) + rest)
    }
}

/// The statistics of `ranks` parts of the vocabulary, `[ranks C, 3]`, combined in rank order.
pub fn xent_combine(stats: &[f32], ranks: usize, combined: &mut [f32]) {
    let rows = combined.len() / 3;
    let part = |rank: usize, row: usize| &stats[(rank * rows + row) * 3..][..3];
    for (row, combined) in combined.chunks_exact_mut(3).enumerate() {
        let max = (0..ranks).map(|rank| part(rank, row)[0]).fold(f32::NEG_INFINITY, f32::max);
        let sum = (0..ranks).map(|rank| part(rank, row)[1] * (part(rank, row)[0] - max).exp()).sum();
        let target = (0..ranks).map(|rank| part(rank, row)[2]).fold(f32::NEG_INFINITY, f32::max);
        combined.copy_from_slice(&[max, sum, target]);
    }
}

/// totals += (sum of w loss, sum of w log(Z)^2, sum of w); a row whose weight is 0 contributes nothing,
/// whatever its target.
pub fn xent_totals(stats: &[f32], weights: &[f32], totals: &mut [f32]) {
    let mut sums = [0.0f64; 3];
    for (stats, &w) in stats.chunks_exact(3).zip(weights).filter(|(_, w)| **w != 0.0) {
        let log_z = (stats[0] + stats[1].ln()) as f64;
        let w = w as f64;
        sums[0] += w * (log_z - stats[2] as f64);
        sums[1] += w * log_z * log_z;
        sums[2] += w;
    }
    totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum as f32);
}

/// Inputs of the gradient of C rows besides their logits.
pub struct Rows<'a> {
    /// `[C, 3]`, of the whole vocabulary.
    pub stats: &'a [f32],
    pub targets: &'a [u32],
    pub weights: &'a [f32],
}

/// Replaces the logits by their gradient, w (p (1 + 2 z log Z) - 1 at the target).
pub fn xent_grad<A: Float>(workers: &Workers, logits: &mut [A], cols: usize, rows: Rows<'_>, x: Xent) {
    let rows = rows.targets.chunks(ROWS).zip(rows.weights.chunks(ROWS)).zip(rows.stats.chunks(ROWS * 3));
    workers.each(logits.chunks_mut(ROWS * cols).zip(rows), |(logits, ((targets, weights), stats))| {
        let rows = targets.iter().zip(weights).zip(stats.as_chunks().0);
        for (logits, ((&target, &w), &[max, sum, _])) in logits.chunks_exact_mut(cols).zip(rows) {
            if w == 0.0 {
                logits.fill(A::default());
                continue;
            }
            let log_z = max + sum.ln();
            let factor = w * (1.0 + 2.0 * x.z_loss * log_z);
            let at = (target as usize).checked_sub(x.first).filter(|&at| at < cols);
            let target = at.map(|at| (at, logits[at].load()));
            match x.cap {
                None => scaled_exp(logits, log_z, factor),
                Some(cap) => scaled_exp_capped(logits, log_z, factor, cap),
            }
            if let Some((at, logit)) = target {
                let (c, slope) = (capped(logit, x.cap), slope(logit, x.cap));
                logits[at] = A::store((factor * exp(c - log_z) - w) * slope);
            }
        }
    });
}

vectorized! {
    /// x = factor e^(x - log_z).
    fn scaled_exp<A: Float>(x: &mut [A], log_z: f32, factor: f32) {
        for x in x {
            *x = A::store(factor * exp(x.load() - log_z));
        }
    }
}

/// dc/dlogit = 1 - (c / cap)^2.
fn slope(logit: f32, cap: Option<f32>) -> f32 {
    cap.map_or(1.0, |cap| 1.0 - tanh(logit / cap) * tanh(logit / cap))
}

vectorized! {
    /// x = factor e^(c - log_z) (1 - (c / cap)^2) with c = cap tanh(x / cap).
    fn scaled_exp_capped<A: Float>(x: &mut [A], log_z: f32, factor: f32, cap: f32) {
        for x in x {
            let t = tanh(x.load() / cap);
            *x = A::store(factor * exp(cap.mul_add(t, -log_z)) * (1.0 - t * t));
        }
    }
}
