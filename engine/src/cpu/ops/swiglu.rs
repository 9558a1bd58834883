//! SwiGLU (Shazeer 2020): y = silu(gate) * up with silu(x) = x s, s = 1 / (1 + e^-x);
//! dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::simd::{exp, vectorized};
use crate::cpu::workers::Workers;

/// y `[T, F]` from gate_up `[T, 2F]` = `[gate | up]`.
pub fn swiglu<A: Float>(workers: &Workers, gate_up: &[A], f: usize, y: &mut [A]) {
    let rows = task_rows(2 * f);
    workers.each(gate_up.chunks(rows * 2 * f).zip(y.chunks_mut(rows * f)), |(gate_up, y)| forward(gate_up, f, y));
}

/// Replaces gate_up by `[dgate | dup]`, from dy `[T, F]`.
pub fn swiglu_bwd<A: Float>(workers: &Workers, dy: &[A], f: usize, gate_up: &mut [A]) {
    let rows = task_rows(2 * f);
    workers.each(dy.chunks(rows * f).zip(gate_up.chunks_mut(rows * 2 * f)), |(dy, gate_up)| backward(dy, f, gate_up));
}

/// Elements that backward computes at once.
const WIDTH: usize = 32;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

vectorized! {
    fn forward<A: Float>(gate_up: &[A], f: usize, y: &mut [A]) {
        for (gate_up, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up.split_at(f);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                let gate = gate.load();
                *y = A::store(gate * sigmoid(gate) * up.load());
            }
        }
    }
}

vectorized! {
    fn backward<A: Float>(dy: &[A], f: usize, gate_up: &mut [A]) {
        for (dy, gate_up) in dy.chunks_exact(f).zip(gate_up.chunks_exact_mut(2 * f)) {
            let (gate, up) = gate_up.split_at_mut(f);
            let dys = dy.as_chunks::<WIDTH>();
            let (gates, ups) = (gate.as_chunks_mut::<WIDTH>(), up.as_chunks_mut::<WIDTH>());
            for ((dy, gate), up) in dys.0.iter().zip(gates.0).zip(ups.0) {
                (*gate, *up) = gradients(dy, gate, up);
            }
            for ((dy, gate), up) in dys.1.iter().zip(gates.1).zip(ups.1) {
                ([*gate], [*up]) = gradients(&[*dy], &[*gate], &[*up]);
            }
        }
    }
}

/// (dgate, dup) of a few elements, by value, so that the compiler need not prove that outputs do not alias inputs.
#[inline(always)]
fn gradients<A: Float, const N: usize>(dy: &[A; N], gate: &[A; N], up: &[A; N]) -> ([A; N], [A; N]) {
    let (mut dgate, mut dup) = ([A::default(); N], [A::default(); N]);
    for i in 0..N {
        let (dy, g, u) = (dy[i].load(), gate[i].load(), up[i].load());
        let s = sigmoid(g);
        dgate[i] = A::store(dy * u * s * g.mul_add(1.0 - s, 1.0));
        dup[i] = A::store(dy * g * s);
    }
    (dgate, dup)
}
