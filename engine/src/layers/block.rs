//! One transformer layer, pre-norm: h = x + Attention(Norm(x)), y = h + MLP(Norm(h)). Gemma 2 also norms what it adds:
//! h = x + Norm(Attention(Norm(x))), y = h + Norm(MLP(Norm(h))).

use super::attention::{self, Pattern};
use super::{Ctx, feed_forward, moe, norm};
use crate::backend::{Acc, Act, Backend, CachedAttention, Tensor, TensorView, TensorViewMut};
use crate::model::param_specs::Block;

pub type Weights<'a, B> = Block<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Block<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs. The norms' outputs are recomputed if they were dropped.
pub struct Saved<B: Backend> {
    /// The layer's input, `[T/tp, D]`.
    x: Act<B>,
    stats1: Acc<B>,
    xn: Option<Act<B>>,
    attention: attention::Saved<B>,
    post1: Option<norm::SavedPost<B>>,
    /// Between attention and MLP, `[T/tp, D]`.
    h: Act<B>,
    stats2: Acc<B>,
    hn: Option<Act<B>>,
    feed_forward: feed_forward::Saved<B>,
    post2: Option<norm::SavedPost<B>>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensors that are cheap to recompute (`recompute = "selective"`): the norms' outputs, normed heads,
    /// the MLP's activation, the rows of experts.
    pub fn slim(mut self) -> Self {
        self.xn = None;
        self.hn = None;
        self.attention.slim();
        self.feed_forward.slim();
        self
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Weights<B>, x: Act<B>) -> (Act<B>, Saved<B>) {
    let (xn, stats1) = norm::forward(cx, &w.norm1, &x);
    let (a, attention) = attention::forward(cx, p, &w.attention, &xn);
    let (a, post1) = norm::post(cx, &w.post1, a);
    let (h, hn, stats2) = norm::add_forward(cx, &w.norm2, &x, a); // h = x + Attention(xn)
    let (m, feed_forward) = feed_forward::forward(cx, &w.feed_forward, &hn);
    let (m, post2) = norm::post(cx, &w.post2, m);
    let y = cx.b.add(m, &h); // y = h + MLP(hn)
    (y, Saved { x, stats1, xn: Some(xn), attention, post1, h, stats2, hn: Some(hn), feed_forward, post2 })
}

/// [`forward`] for rows whose earlier positions are in the layer's cache; see [`attention::cached`].
pub fn cached<B: CachedAttention>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Weights<B>,
    x: Act<B>,
    places: &Tensor<B, u32>,
    cache: &mut Act<B>,
) -> Act<B> {
    let (xn, _) = norm::forward(cx, &w.norm1, &x);
    let a = attention::cached(cx, p, &w.attention, &xn, places, cache);
    let (a, _) = norm::post(cx, &w.post1, a);
    let (h, hn, _) = norm::add_forward(cx, &w.norm2, &x, a); // h = x + Attention(xn)
    let (m, _) = feed_forward::forward(cx, &w.feed_forward, &hn);
    let (m, _) = norm::post(cx, &w.post2, m);
    cx.b.add(m, &h) // y = h + MLP(hn)
}

/// Computes dx from dy. `losses` is there if the model has experts.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Weights<B>,
    dy: Act<B>,
    saved: Saved<B>,
    g: &mut Grads<B>,
    losses: Option<moe::Losses<B>>,
) -> Act<B> {
    let Saved { x, stats1, xn, attention, post1, h, stats2, hn, feed_forward, post2 } = saved;
    let dm = norm::post_backward(cx, &w.post2, &dy, post2, &mut g.post2);
    let coming = cx.region.gather(cx.b, dm.as_ref().unwrap_or(&dy)); // dm in flight during the recomputation
    let hn = hn.unwrap_or_else(|| norm::again(cx, &w.norm2, &h, &stats2));
    let dhn = feed_forward::backward(cx, &w.feed_forward, coming, hn, feed_forward, &mut g.feed_forward, losses);
    drop(dm);
    let dh = norm::backward_add(cx, &w.norm2, &dy, dhn, &h, &stats2, &mut g.norm2); // dh = dy + dNorm(dhn)
    drop((dy, h, stats2));
    let da = norm::post_backward(cx, &w.post1, &dh, post1, &mut g.post1);
    let coming = cx.region.gather(cx.b, da.as_ref().unwrap_or(&dh)); // da in flight
    let xn = xn.unwrap_or_else(|| norm::again(cx, &w.norm1, &x, &stats1));
    let dxn = attention::backward(cx, p, &w.attention, coming, xn, attention, &mut g.attention);
    drop(da);
    norm::backward_add(cx, &w.norm1, &dh, dxn, &x, &stats1, &mut g.norm1) // dx = dh + dNorm(dxn)
}
