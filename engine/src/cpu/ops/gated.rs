//! Gated activations (Shazeer 2020), most of them y = act(gate) * up.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::simd::vectorized;
use crate::cpu::workers::Workers;

/// A function of gate and up.
pub trait Gate {
    /// y.
    fn value(gate: f32, up: f32) -> f32;
    /// (dgate, dup), for act(gate) * up these are (dy up act'(gate), dy act(gate)).
    fn gradients(dy: f32, gate: f32, up: f32) -> (f32, f32);
}

/// y `[T, F]` from gate_up `[T, 2F]` = `[gate | up]`.
pub fn gated<A: Float, G: Gate>(workers: &Workers, gate_up: &[A], f: usize, y: &mut [A]) {
    let rows = task_rows(2 * f);
    let tasks = gate_up.chunks(rows * 2 * f).zip(y.chunks_mut(rows * f));
    workers.each(tasks, |(gate_up, y)| forward::<A, G>(gate_up, f, y));
}

/// Replaces gate_up by `[dgate | dup]`, from dy `[T, F]`.
pub fn gated_bwd<A: Float, G: Gate>(workers: &Workers, dy: &[A], f: usize, gate_up: &mut [A]) {
    let rows = task_rows(2 * f);
    let tasks = dy.chunks(rows * f).zip(gate_up.chunks_mut(rows * 2 * f));
    workers.each(tasks, |(dy, gate_up)| backward::<A, G>(dy, f, gate_up));
}

/// y `[R, F]` = weight * G(gate, up), with a weight for each row.
pub fn weighted<A: Float, G: Gate>(workers: &Workers, gate_up: &[A], weights: &[f32], f: usize, y: &mut [A]) {
    let rows = task_rows(2 * f);
    let tasks = gate_up.chunks(rows * 2 * f).zip(weights.chunks(rows)).zip(y.chunks_mut(rows * f));
    workers.each(tasks, |((gate_up, weights), y)| forward_weighted::<A, G>(gate_up, weights, f, y));
}

/// Replaces gate_up by `[dgate | dup]`, from dy `[R, F]`; dweight of each row is the sum of dy G(gate, up).
pub fn weighted_bwd<A: Float, G: Gate>(
    workers: &Workers,
    dy: &[A],
    weights: &[f32],
    f: usize,
    gate_up: &mut [A],
    dweights: &mut [f32],
) {
    let rows = task_rows(2 * f);
    let of_rows = weights.chunks(rows).zip(dweights.chunks_mut(rows));
    let tasks = dy.chunks(rows * f).zip(of_rows).zip(gate_up.chunks_mut(rows * 2 * f));
    workers.each(tasks, |((dy, (weights, dweights)), gate_up)| {
        backward_weighted::<A, G>(dy, weights, f, gate_up, dweights);
    });
}

/// Elements that backward computes at once.
const WIDTH: usize = 32;

vectorized! {
    fn forward<A: Float, G: Gate>(gate_up: &[A], f: usize, y: &mut [A]) {
        for (gate_up, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up.split_at(f);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = A::store(G::value(gate.load(), up.load()));
            }
        }
    }
}

vectorized! {
    fn forward_weighted<A: Float, G: Gate>(gate_up: &[A], weights: &[f32], f: usize, y: &mut [A]) {
        for ((gate_up, weight), y) in gate_up.chunks_exact(2 * f).zip(weights).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up.split_at(f);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = A::store(weight * G::value(gate.load(), up.load()));
            }
        }
    }
}

/// Sums of dweights that are kept apart, so that they can be added side by side.
const LANES: usize = 16;

vectorized! {
    fn backward_weighted<A: Float, G: Gate>(
        dy: &[A],
        weights: &[f32],
        f: usize,
        gate_up: &mut [A],
        dweights: &mut [f32],
    ) {
        let rows = dy.chunks_exact(f).zip(gate_up.chunks_exact_mut(2 * f));
        for ((dy, gate_up), (&weight, dweight)) in rows.zip(weights.iter().zip(dweights)) {
            let (gate, up) = gate_up.split_at_mut(f);
            let mut sums = [0.0; LANES];
            for ((dy, gate), up) in dy.chunks(LANES).zip(gate.chunks_mut(LANES)).zip(up.chunks_mut(LANES)) {
                for (((dy, gate), up), sum) in dy.iter().zip(gate).zip(up).zip(&mut sums) {
                    let (dy, g, u) = (dy.load(), gate.load(), up.load());
                    *sum += dy * G::value(g, u);
                    let (of_gate, of_up) = G::gradients(weight * dy, g, u);
                    (*gate, *up) = (A::store(of_gate), A::store(of_up));
                }
            }
            *dweight = sums.iter().sum();
        }
    }
}

vectorized! {
    fn backward<A: Float, G: Gate>(dy: &[A], f: usize, gate_up: &mut [A]) {
        for (dy, gate_up) in dy.chunks_exact(f).zip(gate_up.chunks_exact_mut(2 * f)) {
            let (gate, up) = gate_up.split_at_mut(f);
            let dys = dy.as_chunks::<WIDTH>();
            let (gates, ups) = (gate.as_chunks_mut::<WIDTH>(), up.as_chunks_mut::<WIDTH>());
            for ((dy, gate), up) in dys.0.iter().zip(gates.0).zip(ups.0) {
                (*gate, *up) = gradients::<A, G, WIDTH>(dy, gate, up);
            }
            for ((dy, gate), up) in dys.1.iter().zip(gates.1).zip(ups.1) {
                ([*gate], [*up]) = gradients::<A, G, 1>(&[*dy], &[*gate], &[*up]);
            }
        }
    }
}

/// (dgate, dup) of a few elements, by value, so that the compiler need not prove that outputs do not alias inputs.
#[inline(always)]
fn gradients<A: Float, G: Gate, const N: usize>(dy: &[A; N], gate: &[A; N], up: &[A; N]) -> ([A; N], [A; N]) {
    let (mut dgate, mut dup) = ([A::default(); N], [A::default(); N]);
    for i in 0..N {
        let (of_gate, of_up) = G::gradients(dy[i].load(), gate[i].load(), up[i].load());
        (dgate[i], dup[i]) = (A::store(of_gate), A::store(of_up));
    }
    (dgate, dup)
}
