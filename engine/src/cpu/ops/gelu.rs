//! GELU in its tanh form (Hendrycks & Gimpel 2016): gelu(x) = x (1 + t) / 2 with t = tanh(u),
//! u = sqrt(2 / pi) (x + 0.044715 x^3), and gelu'(x) = (1 + t) / 2 + x (1 - t^2) u' / 2. GeGLU (Shazeer 2020):
//! y = gelu(gate) * up.

use super::gated::Gate;
use crate::cpu::float::Float;
use crate::cpu::simd::{tanh, vectorized};
use crate::cpu::workers::Workers;

/// Elements of a task of [`gelu`].
const TASK: usize = 64 * 1024;

/// sqrt(2 / pi).
const ROOT: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

pub struct GeGlu;

impl Gate for GeGlu {
    #[inline(always)]
    fn value(gate: f32, up: f32) -> f32 {
        value_and_slope(gate).0 * up
    }

    #[inline(always)]
    fn gradients(dy: f32, gate: f32, up: f32) -> (f32, f32) {
        let (value, slope) = value_and_slope(gate);
        (dy * up * slope, dy * value)
    }
}

/// y = gelu(x).
pub fn gelu<A: Float>(workers: &Workers, x: &[A], y: &mut [A]) {
    workers.each(x.chunks(TASK).zip(y.chunks_mut(TASK)), |(x, y)| forward(x, y));
}

/// Replaces x by dx, from dy.
pub fn gelu_bwd<A: Float>(workers: &Workers, dy: &[A], x: &mut [A]) {
    workers.each(dy.chunks(TASK).zip(x.chunks_mut(TASK)), |(dy, x)| backward(dy, x));
}

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
    fn forward<A: Float>(x: &[A], y: &mut [A]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = A::store(value_and_slope(x.load()).0);
        }
    }
}

vectorized! {
    fn backward<A: Float>(dy: &[A], x: &mut [A]) {
        for (x, dy) in x.iter_mut().zip(dy) {
            *x = A::store(dy.load() * value_and_slope(x.load()).1);
        }
    }
}
