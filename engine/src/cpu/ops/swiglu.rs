//! SwiGLU (Shazeer 2020): y = silu(gate) * up with silu(x) = x s, s = 1 / (1 + e^-x);
//! dgate = dy up s (1 + gate (1 - s)), dup = dy gate s.

use super::gated::Gate;
use crate::cpu::simd::exp;

pub struct SwiGlu;

impl Gate for SwiGlu {
    #[inline(always)]
    fn value(gate: f32) -> f32 {
        gate * sigmoid(gate)
    }

    #[inline(always)]
    fn gradients(dy: f32, gate: f32, up: f32) -> (f32, f32) {
        let s = sigmoid(gate);
        (dy * up * s * gate.mul_add(1.0 - s, 1.0), dy * gate * s)
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
