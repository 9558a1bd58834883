//! y = Attention(x): grouped-query causal attention (Ainslie et al. 2023) with rotary positions,
//! between the norm and the residual sum, which belong to `block.rs`.

use super::Ctx;
use super::region::Gather;
use crate::backend::{Acc, Act, Backend, Heads, Tensor, TensorView, TensorViewMut};
use crate::model::param_specs::Attention;

/// Weights of this rank's heads.
pub type Weights<'a, B> = Attention<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Attention<TensorViewMut<'a, B, f32>>;

/// The heads of a layer, and the positions of a micro-batch's rows.
pub struct Pattern<'a, B: Backend> {
    pub heads: Heads,
    /// cos and sin by position, `[longest, d]`.
    pub rope: &'a Acc<B>,
    /// The position of each row, `[T, 1]`.
    pub positions: &'a Tensor<B, u32>,
    /// The first position that each row attends to, `[T, 1]`.
    pub starts: &'a Tensor<B, u32>,
}

/// The tensors that backward needs besides the input.
pub struct Saved<B: Backend> {
    /// After the rotation, `[T, (H + 2G) d]`.
    qkv: Act<B>,
    /// `[T, H d]`.
    o: Act<B>,
    /// Log of the softmax's denominator, `[T, H]`.
    lse: Acc<B>,
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    let b = cx.b;
    let (_, qkv) = cx.region.gather(b, x).nt(b, &w.qkv); // [T/tp, D] -> [T, D] -> [T, (H + 2G) d]
    let qkv = b.rope(qkv, p.rope, p.positions, p.heads); // q, k = R_t x Wq^T, R_t x Wk^T; v = x Wv^T
    let (o, lse) = b.attention(&qkv, p.starts, p.heads); // o = softmax(q k^T / sqrt(d)) v
    let y = cx.region.nt_scatter(b, &o, &w.out).wait(); // y = sum over tp of o Wo^T, [T, D] -> [T/tp, D]
    (y, Saved { qkv, o, lse })
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
    let b = cx.b;
    let Saved { qkv, o, lse } = saved;
    let dqkv = {
        let (dy, do_) = dy.nn(b, &w.out); // do = dy Wo
        b.matmul_tn_acc(&dy, &o, &mut g.out); // dWo += dy^T o
        drop(dy);
        b.attention_bwd(&do_, &o, &lse, &qkv, p.starts, p.heads)
    };
    drop((qkv, o, lse));
    let dqkv = b.rope_bwd(dqkv, p.rope, p.positions, p.heads);
    let x = cx.region.collect(b, x); // x in flight ...
    let dx = b.matmul_nn(&dqkv, &w.qkv); // ... while computing dx = dqkv Wqkv
    let x = x.wait();
    let dx = cx.region.scatter(b, dx); // dx in flight ...
    b.matmul_tn_acc(&dqkv, &x, &mut g.qkv); // ... while computing dWqkv += dqkv^T x
    dx.wait()
}
