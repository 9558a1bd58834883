//! One transformer layer, pre-norm: h = x + Attention(RMSNorm(x)), y = h + MLP(RMSNorm(h)).

use super::attention::{self, Pattern};
use super::{Ctx, mlp};
use crate::backend::{Acc, Act, Backend, TensorView, TensorViewMut};
use crate::model::param_specs::Block;

pub type Weights<'a, B> = Block<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Block<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs. The norms' outputs are recomputed if they were dropped.
pub struct Saved<B: Backend> {
    /// The layer's input, `[T/tp, D]`.
    x: Act<B>,
    rstd1: Acc<B>,
    xn: Option<Act<B>>,
    attention: attention::Saved<B>,
    /// Between attention and MLP, `[T/tp, D]`.
    h: Act<B>,
    rstd2: Acc<B>,
    hn: Option<Act<B>>,
    mlp: mlp::Saved<B>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensors that are cheap to recompute (`recompute = "selective"`): the norms' outputs and the SwiGLU
    /// product.
    pub fn slim(mut self) -> Self {
        self.xn = None;
        self.hn = None;
        self.mlp.slim();
        self
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Weights<B>, x: Act<B>) -> (Act<B>, Saved<B>) {
    let b = cx.b;
    let (xn, rstd1) = b.rmsnorm(&x, &w.norm1, cx.eps);
    let (a, attention) = attention::forward(cx, p, &w.attention, &xn);
    let (h, hn, rstd2) = b.add_rmsnorm(&x, a, &w.norm2, cx.eps); // h = x + Attention(xn)
    let (m, mlp) = mlp::forward(cx, &w.mlp, &hn);
    let y = b.add(m, &h); // y = h + MLP(hn)
    (y, Saved { x, rstd1, xn: Some(xn), attention, h, rstd2, hn: Some(hn), mlp })
}

/// Computes dx from dy.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Weights<B>,
    dy: Act<B>,
    saved: Saved<B>,
    g: &mut Grads<B>,
) -> Act<B> {
    let b = cx.b;
    let Saved { x, rstd1, xn, attention, h, rstd2, hn, mlp } = saved;
    let coming = cx.region.gather(b, &dy); // dy in flight during the recomputation
    let hn = hn.unwrap_or_else(|| b.rmsnorm_recompute(&h, &rstd2, &w.norm2));
    let dhn = mlp::backward(cx, &w.mlp, coming, hn, mlp, &mut g.mlp);
    let dh = b.rmsnorm_bwd_add(&dy, dhn, &h, &rstd2, &w.norm2, &mut g.norm2); // dh = dy + dRMSNorm(dhn)
    drop((dy, h, rstd2));
    let coming = cx.region.gather(b, &dh); // dh in flight
    let xn = xn.unwrap_or_else(|| b.rmsnorm_recompute(&x, &rstd1, &w.norm1));
    let dxn = attention::backward(cx, p, &w.attention, coming, xn, attention, &mut g.attention);
    b.rmsnorm_bwd_add(&dh, dxn, &x, &rstd1, &w.norm1, &mut g.norm1) // dx = dh + dRMSNorm(dxn)
}
