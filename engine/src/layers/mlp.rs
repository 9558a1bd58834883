//! y = (silu(x Wg^T) * (x Wu^T)) Wd^T: the SwiGLU feed-forward layer (Shazeer 2020).

use super::Ctx;
use super::region::Gather;
use crate::backend::{Act, Backend, TensorView, TensorViewMut};
use crate::model::param_specs::Mlp;

/// Weights of this rank's columns.
pub type Weights<'a, B> = Mlp<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Mlp<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs besides the input.
pub struct Saved<B: Backend> {
    /// x Wg^T and x Wu^T side by side, `[T, 2F]`.
    gate_up: Act<B>,
    /// silu(gate) * up, `[T, F]`; recomputed if it was dropped.
    product: Option<Act<B>>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensor that is cheap to recompute.
    pub fn slim(&mut self) {
        self.product = None;
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    let b = cx.b;
    let (_, gate_up) = cx.region.gather(b, x).nt(b, &w.gate_up); // [T/tp, D] -> [T, D] -> [T, 2F]
    let product = b.swiglu(&gate_up); // a = silu(gate) * up
    let y = cx.region.nt_scatter(b, &product, &w.down).wait(); // y = sum over tp of a Wd^T
    (y, Saved { gate_up, product: Some(product) })
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
    let b = cx.b;
    let Saved { gate_up, product } = saved;
    let da = {
        let a = product.unwrap_or_else(|| b.swiglu(&gate_up));
        let (dy, da) = dy.nn(b, &w.down); // da = dy Wd
        b.matmul_tn_acc(&dy, &a, &mut g.down); // dWd += dy^T a
        da
    };
    let dgate_up = b.swiglu_bwd(&da, gate_up);
    drop(da);
    let x = cx.region.collect(b, x); // x in flight ...
    let dx = b.matmul_nn(&dgate_up, &w.gate_up); // ... while computing dx = dgate Wg + dup Wu
    let x = x.wait();
    let dx = cx.region.scatter(b, dx); // dx in flight ...
    b.matmul_tn_acc(&dgate_up, &x, &mut g.gate_up); // ... while computing dWg += dgate^T x, dWu += dup^T x
    dx.wait()
}
