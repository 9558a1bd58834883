//! SwiGLU (Shazeer 2020): y = silu(gate) * up with silu(x) = x s, s = 1 / (1 + e^-x);
//! dgate = dy up s (1 + gate (1 - s)), dup = dy gate s. GPT-OSS clamps both, gives the gate a slope, and adds one to
//! up.

use super::gated::Gate;
use crate::backend::ClampedGate;
use crate::cpu::simd::exp;

pub struct SwiGlu;

impl Gate for SwiGlu {
    #[inline(always)]
    fn value(gate: f32, up: f32) -> f32 {
        gate * sigmoid(gate) * up
    }

    #[inline(always)]
    fn gradients(dy: f32, gate: f32, up: f32) -> (f32, f32) {
        let s = sigmoid(gate);
        (dy * up * s * gate.mul_add(1.0 - s, 1.0), dy * gate * s)
    }
}

/// With s = sigmoid(slope g), g and u the clamped gate and up: y = (u + 1) g s;
/// dg = dy (u + 1) s (1 + slope g (1 - s)), du = dy g s, zero where a clamp holds.
impl Gate for ClampedGate {
    #[inline(always)]
    fn value(gate: f32, up: f32) -> f32 {
        let (g, u) = clamped(gate, up);
        (u + 1.0) * g * sigmoid(Self::SLOPE * g)
    }

    #[inline(always)]
    fn gradients(dy: f32, gate: f32, up: f32) -> (f32, f32) {
        let (g, u) = clamped(gate, up);
        let s = sigmoid(Self::SLOPE * g);
        let dg = dy * (u + 1.0) * s * (Self::SLOPE * g).mul_add(1.0 - s, 1.0);
        let du = dy * g * s;
        (if gate > Self::LIMIT { 0.0 } else { dg }, if up.abs() > Self::LIMIT { 0.0 } else { du })
    }
}

/// A number that is none stays none.
#[inline(always)]
fn clamped(gate: f32, up: f32) -> (f32, f32) {
    let limit = ClampedGate::LIMIT;
    (if gate > limit { limit } else { gate }, up.clamp(-limit, limit))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
