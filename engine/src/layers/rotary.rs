//! From the projections q, k, v to what attention reads: the norms of heads where the model has them (Qwen 3), and the
//! rotary positions (Su et al. 2021) where it has them: q = R_t RMSNorm(q), k = R_t RMSNorm(k).

use super::Ctx;
use super::attention::Pattern;
use crate::backend::{Act, Backend, HeadRms, TensorView, TensorViewMut};
use crate::model::param_specs::HeadNorms;

pub type Weights<'a, B> = HeadNorms<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = HeadNorms<TensorViewMut<'a, B, f32>>;

/// `[T, (H + 2G) d]` as attention reads it, and the projections where backward needs them: the norms' input.
pub struct Qkv<B: Backend> {
    projected: Option<Act<B>>,
    rotated: Option<Act<B>>,
}

impl<B: Backend> Qkv<B> {
    /// Drops what [`Qkv::restore`] computes again.
    pub fn slim(&mut self) {
        if self.projected.is_some() {
            self.rotated = None;
        }
    }

    /// What attention reads.
    pub fn rotated(&self) -> &Act<B> {
        self.rotated.as_ref().expect("it was restored")
    }

    /// Computes what [`Qkv::slim`] dropped.
    pub fn restore(&mut self, cx: &Ctx<B>, p: &Pattern<B>, w: &Option<Weights<B>>) {
        if let (None, Some(projected)) = (&self.rotated, &self.projected) {
            self.rotated = Some(normed(cx, p, w, projected));
        }
    }
}

pub fn forward<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Option<Weights<B>>, qkv: Act<B>) -> Qkv<B> {
    match (w, p.rotary) {
        (Some(_), _) => Qkv { rotated: Some(normed(cx, p, w, &qkv)), projected: Some(qkv) },
        (None, Some(r)) => Qkv { rotated: Some(cx.b.rope(qkv, r, p.heads)), projected: None },
        (None, None) => Qkv { rotated: Some(qkv), projected: None },
    }
}

/// Computes the gradient of the projections from that of what attention reads.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Option<Weights<B>>,
    dqkv: Act<B>,
    saved: Qkv<B>,
    g: &mut Option<Grads<B>>,
) -> Act<B> {
    let b = cx.b;
    match (w, g, saved.projected, p.rotary) {
        (Some(w), Some(g), Some(projected), Some(r)) => {
            b.qk_norm_rope_bwd(dqkv, &projected, of_heads(cx, w), r, p.heads, [&mut g.q, &mut g.k])
        }
        (_, _, _, Some(r)) => b.rope_bwd(dqkv, r, p.heads),
        (_, _, _, None) => dqkv,
    }
}

fn normed<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Option<Weights<B>>, projected: &Act<B>) -> Act<B> {
    let w = w.as_ref().expect("the projections are kept for the norms of heads");
    let r = p.rotary.expect("no model norms its heads without rotating them");
    cx.b.qk_norm_rope(projected, of_heads(cx, w), r, p.heads)
}

fn of_heads<'a, B: Backend>(cx: &Ctx<B>, w: &'a Weights<B>) -> HeadRms<'a, B> {
    HeadRms { q: &w.q, k: &w.k, eps: cx.norms.eps }
}
