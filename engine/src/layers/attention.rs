//! y = Attention(x): grouped-query causal attention (Ainslie et al. 2023), between the norm and the residual sum, which
//! belong to `block.rs`.

use super::Ctx;
use super::region::Gather;
use super::{linear, rotary};
use crate::backend::{
    Acc, Act, Backend, CachedAttention, CachedRows, Heads, Rotary, Tensor, TensorView, TensorViewMut,
};
use crate::model::param_specs::Attention;

/// Weights of this rank's heads.
pub type Weights<'a, B> = Attention<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Attention<TensorViewMut<'a, B, f32>>;

/// The heads of a layer, and the positions of a micro-batch's rows.
pub struct Pattern<'a, B: Backend> {
    pub heads: Heads,
    /// `None` for models whose embedding has the positions.
    pub rotary: Option<Rotary<'a, B>>,
    /// The first position that each row attends to, `[T, 1]`.
    pub starts: &'a Tensor<B, u32>,
}

/// The tensors that backward needs besides the input.
pub struct Saved<B: Backend> {
    /// `[T, (H + 2G) d]`.
    qkv: rotary::Qkv<B>,
    /// `[T, H d]`.
    o: Act<B>,
    /// Log of the softmax's denominator, with the sink, `[T, H]`.
    lse: Acc<B>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensor that is cheap to recompute.
    pub fn slim(&mut self) {
        self.qkv.slim();
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    let qkv = linear::columns(cx, &w.qkv, x); // q, k, v = x Wq^T, x Wk^T, x Wv^T: [T/tp, D] -> [T, (H + 2G) d]
    let qkv = rotary::forward(cx, p, &w.norms, qkv); // q = R_t q, k = R_t k
    let (o, lse) = cx.b.attention(qkv.rotated(), p.starts, p.heads); // o = softmax(q k^T / sqrt(d)) v
    let (o, lse) = match &w.sinks {
        Some(sinks) => cx.b.add_sinks(o, lse, sinks), // the softmax's denominator gets one more term
        None => (o, lse),
    };
    let y = linear::rows(cx, &w.out, &o); // y = sum over tp of o Wo^T, [T, H d] -> [T/tp, D]
    (y, Saved { qkv, o, lse })
}

/// [`forward`] for rows at `places` whose earlier positions are in the layer's cache, `[C, 2G d]`; `p.starts` has the
/// first place that each row attends to. Nothing is kept for a backward pass.
pub fn cached<B: CachedAttention>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Weights<B>,
    x: &Act<B>,
    places: &Tensor<B, u32>,
    cache: &mut Act<B>,
) -> Act<B> {
    let qkv = linear::columns(cx, &w.qkv, x); // [T/tp, D] -> [T, (H + 2G) d]
    let qkv = rotary::forward(cx, p, &w.norms, qkv);
    let (o, lse) = cx.b.attention_cached(qkv.rotated(), cache, CachedRows { places, first: p.starts }, p.heads);
    let o = match &w.sinks {
        Some(sinks) => cx.b.add_sinks(o, lse, sinks).0,
        None => o,
    };
    linear::rows(cx, &w.out, &o) // [T, H d] -> [T/tp, D]
}

/// Computes dx from dy, whose all-gather may be in flight. `saved` is taken by value: each field is freed after its
/// last use.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Weights<B>,
    dy: Gather<B>,
    x: Act<B>,
    saved: Saved<B>,
    g: &mut Grads<B>,
) -> Act<B> {
    let Saved { mut qkv, o, lse } = saved;
    let do_ = linear::rows_backward(cx, &w.out, dy, &o, &mut g.out); // do = dy Wo
    if let (Some(sinks), Some(dsinks)) = (&w.sinks, &mut g.sinks) {
        cx.b.sinks_bwd(&do_, &o, &lse, sinks, dsinks);
    }
    qkv.restore(cx, p, &w.norms);
    let dqkv = cx.b.attention_bwd(&do_, &o, &lse, qkv.rotated(), p.starts, p.heads);
    drop((do_, o, lse));
    let dqkv = rotary::backward(cx, p, &w.norms, dqkv, qkv, &mut g.norms);
    linear::columns_backward(cx, &w.qkv, dqkv, x, &mut g.qkv) // dx = dqkv Wqkv
}
