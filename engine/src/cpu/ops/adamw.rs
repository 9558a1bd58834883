//! The optimizer: AdamW (Loshchilov & Hutter 2019) in one pass over a shard, and the norm of gradients.

use crate::backend::AdamW;
use crate::cpu::float::Float;
use crate::cpu::simd::{LANES, vectorized};
use crate::cpu::workers::Workers;

/// Elements of a task, and of a part of the sum of squares.
const TASK: usize = 64 * 1024;

/// The f32 state of a shard; all slices have the same length.
pub struct State<'a> {
    pub master: &'a mut [f32],
    pub m: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2,
/// master -= lr (m^ / (sqrt(v^) + eps) + weight_decay master), m^ = m / correction1, v^ = v / correction2;
/// g is `factor` times the gradient given, and `out` the new weights, rounded.
pub fn adamw<A: Float>(workers: &Workers, g: &[f32], factor: f32, state: State<'_>, hp: AdamW, out: &mut [A]) {
    let state = state.master.chunks_mut(TASK).zip(state.m.chunks_mut(TASK)).zip(state.v.chunks_mut(TASK));
    let tasks = g.chunks(TASK).zip(state).zip(out.chunks_mut(TASK)).enumerate();
    workers.each(tasks, |(n, ((g, ((master, m), v)), out))| {
        let decayed = hp.decayed.saturating_sub(n * TASK).min(g.len());
        let (mut first, mut rest) = (State { master, m, v }, None);
        if decayed < g.len() {
            let (a, b) = first.split_at(decayed);
            (first, rest) = (a, Some(b));
        }
        let (out_first, out_rest) = out.split_at_mut(decayed);
        update(&g[..decayed], factor, first, hp.lr * hp.weight_decay, hp, out_first);
        if let Some(rest) = rest {
            update(&g[decayed..], factor, rest, 0.0, hp, out_rest);
        }
    });
}

impl<'a> State<'a> {
    fn split_at(self, at: usize) -> (State<'a>, State<'a>) {
        let (master, master_rest) = self.master.split_at_mut(at);
        let (m, m_rest) = self.m.split_at_mut(at);
        let (v, v_rest) = self.v.split_at_mut(at);
        (State { master, m, v }, State { master: master_rest, m: m_rest, v: v_rest })
    }
}

vectorized! {
    fn update<A: Float>(g: &[f32], factor: f32, state: State<'_>, decay: f32, hp: AdamW, out: &mut [A]) {
        let (rate, scale) = (hp.lr / hp.correction1, 1.0 / hp.correction2);
        let (beta1, beta2) = (hp.beta1 as f32, hp.beta2 as f32);
        let (fresh1, fresh2) = ((1.0 - hp.beta1) as f32, (1.0 - hp.beta2) as f32);
        let state = state.master.iter_mut().zip(state.m).zip(state.v);
        for ((g, ((master, m), v)), out) in g.iter().zip(state).zip(out) {
            let g = g * factor;
            *m = beta1.mul_add(*m, fresh1 * g);
            *v = beta2.mul_add(*v, fresh2 * g * g);
            let step = rate * *m / ((*v * scale).sqrt() + hp.eps);
            *master -= decay.mul_add(*master, step);
            *out = A::store(*master);
        }
    }
}

/// The sum of squares, in f64: sums of parts of fixed size, added in order.
pub fn sum_squares(workers: &Workers, g: &[f32]) -> f64 {
    let mut sums = vec![0.0f64; g.len().div_ceil(TASK)];
    workers.each(g.chunks(TASK).zip(&mut sums), |(g, sum)| *sum = squares(g));
    sums.iter().sum()
}

vectorized! {
    fn squares(g: &[f32]) -> f64 {
        let (whole, rest) = g.as_chunks::<LANES>();
        let mut sums = [0.0f64; LANES];
        for g in whole {
            for i in 0..LANES {
                sums[i] = (g[i] as f64).mul_add(g[i] as f64, sums[i]);
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&g| g as f64 * g as f64).sum::<f64>()
    }
}
