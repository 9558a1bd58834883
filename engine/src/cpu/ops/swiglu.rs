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

/// `[dgate | dup]` in the place of gate_up, from dy `[T, F]`.
pub fn swiglu_bwd<A: Float>(workers: &Workers, dy: &[A], f: usize, gate_up: &mut [A]) {
    let rows = task_rows(2 * f);
    workers.each(dy.chunks(rows * f).zip(gate_up.chunks_mut(rows * 2 * f)), |(dy, gate_up)| backward(dy, f, gate_up));
}

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
            for ((dy, gate), up) in dy.iter().zip(gate).zip(up) {
                let (dy, g, u) = (dy.load(), gate.load(), up.load());
                let s = sigmoid(g);
                *gate = A::store(dy * u * s * g.mul_add(1.0 - s, 1.0));
                *up = A::store(dy * g * s);
            }
        }
    }
}
