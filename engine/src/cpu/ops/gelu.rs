//! GELU in its tanh form (Hendrycks & Gimpel 2016): gelu(x) = x (1 + t) / 2 with t = tanh(u),
//! u = sqrt(2 / pi) (x + 0.044715 x^3), and gelu'(x) = (1 + t) / 2 + x (1 - t^2) u' / 2. GeGLU (Shazeer 2020):
//! y = gelu(gate) * up; dgate = dy up gelu'(gate), dup = dy gelu(gate).

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::simd::{tanh, vectorized};
use crate::cpu::workers::Workers;

/// Elements of a task of [`gelu`].
const TASK: usize = 64 * 1024;

/// y `[T, F]` from gate_up `[T, 2F]` = `[gate | up]`.
pub fn geglu<A: Float>(workers: &Workers, gate_up: &[A], f: usize, y: &mut [A]) {
    let rows = task_rows(2 * f);
    workers.each(gate_up.chunks(rows * 2 * f).zip(y.chunks_mut(rows * f)), |(gate_up, y)| gated(gate_up, f, y));
}

/// Replaces gate_up by `[dgate | dup]`, from dy `[T, F]`.
pub fn geglu_bwd<A: Float>(workers: &Workers, dy: &[A], f: usize, gate_up: &mut [A]) {
    let rows = task_rows(2 * f);
    workers.each(dy.chunks(rows * f).zip(gate_up.chunks_mut(rows * 2 * f)), |(dy, gate_up)| gated_bwd(dy, f, gate_up));
}

/// y = gelu(x).
pub fn gelu<A: Float>(workers: &Workers, x: &[A], y: &mut [A]) {
    workers.each(x.chunks(TASK).zip(y.chunks_mut(TASK)), |(x, y)| plain(x, y));
}

/// Replaces x by dx, from dy.
pub fn gelu_bwd<A: Float>(workers: &Workers, dy: &[A], x: &mut [A]) {
    workers.each(dy.chunks(TASK).zip(x.chunks_mut(TASK)), |(dy, x)| plain_bwd(dy, x));
}

/// sqrt(2 / pi).
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// (gelu(x), gelu'(x)).
#[inline(always)]
fn value_and_slope(x: f32) -> (f32, f32) {
    let square = x * x;
    let t = tanh(ROOT * x * CUBE.mul_add(square, 1.0));
    let half = 0.5 * (1.0 + t);
    let du = ROOT * (3.0 * CUBE).mul_add(square, 1.0);
    (x * half, (0.5 * x * du).mul_add(1.0 - t * t, half))
}

vectorized! {
    fn gated<A: Float>(gate_up: &[A], f: usize, y: &mut [A]) {
        for (gate_up, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            let (gate, up) = gate_up.split_at(f);
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = A::store(value_and_slope(gate.load()).0 * up.load());
            }
        }
    }
}

/// Elements that backward computes at once.
const WIDTH: usize = 32;

vectorized! {
    fn gated_bwd<A: Float>(dy: &[A], f: usize, gate_up: &mut [A]) {
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
        let (dy, (value, slope)) = (dy[i].load(), value_and_slope(gate[i].load()));
        dgate[i] = A::store(dy * up[i].load() * slope);
        dup[i] = A::store(dy * value);
    }
    (dgate, dup)
}

vectorized! {
    fn plain<A: Float>(x: &[A], y: &mut [A]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = A::store(value_and_slope(x.load()).0);
        }
    }
}

vectorized! {
    fn plain_bwd<A: Float>(dy: &[A], x: &mut [A]) {
        for (x, dy) in x.iter_mut().zip(dy) {
            *x = A::store(dy.load() * value_and_slope(x.load()).1);
        }
    }
}
