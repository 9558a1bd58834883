//! y = a(x Wu^T) Wd^T: the feed-forward layer. With a gate (Shazeer 2020), Wu is the gate's weight above that of the
//! values, and a(g, u) = act(g) * u.

use super::region::Gather;
use super::{Ctx, linear};
use crate::backend::{Act, Backend, TensorView, TensorViewMut};
use crate::config::Activation;
use crate::model::param_specs::Mlp;

/// Weights of this rank's columns.
pub type Weights<'a, B> = Mlp<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Mlp<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs besides the input.
pub struct Saved<B: Backend> {
    /// x Wu^T, `[T, 2F]` with a gate, `[T, F]` without.
    up: Act<B>,
    /// a, `[T, F]`; recomputed if it was dropped.
    a: Option<Act<B>>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensor that is cheap to recompute.
    pub fn slim(&mut self) {
        self.a = None;
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    let up = linear::columns(cx, &w.up, x); // [T/tp, D] -> [T, 2F]
    let a = activation(cx, &up); // [T, 2F] -> [T, F]
    let y = linear::rows(cx, &w.down, &a); // y = sum over tp of a Wd^T, [T, F] -> [T/tp, D]
    (y, Saved { up, a: Some(a) })
}

/// Computes dx from dy, whose all-gather may be in flight.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    dy: Gather<B>,
    x: Act<B>,
    saved: Saved<B>,
    g: &mut Grads<B>,
) -> Act<B> {
    let Saved { up, a } = saved;
    let a = a.unwrap_or_else(|| activation(cx, &up));
    let da = linear::rows_backward(cx, &w.down, dy, &a, &mut g.down); // da = dy Wd
    drop(a);
    let dup = activation_backward(cx, da, up);
    linear::columns_backward(cx, &w.up, dup, x, &mut g.up) // dx = dup Wu
}

fn activation<B: Backend>(cx: &Ctx<B>, up: &Act<B>) -> Act<B> {
    match cx.activation {
        Activation::SwiGlu => cx.b.swiglu(up),
        Activation::GeGlu => cx.b.geglu(up),
        Activation::Gelu => cx.b.gelu(up),
        Activation::ClampedSwiGlu => panic!("experts alone have a clamped gate"),
    }
}

/// The gradient of `up` from that of its activation.
fn activation_backward<B: Backend>(cx: &Ctx<B>, da: Act<B>, up: Act<B>) -> Act<B> {
    match cx.activation {
        Activation::SwiGlu => cx.b.swiglu_bwd(&da, up),
        Activation::GeGlu => cx.b.geglu_bwd(&da, up),
        Activation::Gelu => cx.b.gelu_bwd(&da, up),
        Activation::ClampedSwiGlu => panic!("experts alone have a clamped gate"),
    }
}
