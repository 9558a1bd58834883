//! From the projections q, k, v to the input of attention: the norms of heads where the model has them (Qwen 3), and
//! the rotary positions (Su et al. 2021) where it has them: q = R_t RMSNorm(q), k = R_t RMSNorm(k).

use super::Ctx;
use super::attention::Pattern;
use crate::backend::{Act, Backend, HeadRms, Rotary, TensorView, TensorViewMut};
use crate::model::param_specs::HeadNorms;

pub type Weights<'a, B> = HeadNorms<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = HeadNorms<TensorViewMut<'a, B, f32>>;

/// q, k and v for attention, `[T, (H + 2G) d]`.
pub enum Qkv<B: Backend> {
    /// Nothing else is needed for backward.
    Rotated(Act<B>),
    /// With norms of heads, backward needs their input too. The result is recomputed if it was dropped.
    Normed { projected: Act<B>, rotated: Option<Act<B>> },
}

impl<B: Backend> Qkv<B> {
    /// Drops the tensor that is cheap to recompute.
    pub fn slim(&mut self) {
        if let Qkv::Normed { rotated, .. } = self {
            *rotated = None;
        }
    }

    /// Recomputes what [`Qkv::slim`] dropped.
    pub fn restore(&mut self, cx: &Ctx<B>, p: &Pattern<B>, w: &Option<Weights<B>>) {
        if let Qkv::Normed { projected, rotated } = self {
            rotated.get_or_insert_with(|| normed(cx, p, of_heads(cx, w), projected));
        }
    }

    /// The input of attention.
    pub fn rotated(&self) -> &Act<B> {
        match self {
            Qkv::Rotated(qkv) => qkv,
            Qkv::Normed { rotated, .. } => rotated.as_ref().expect("it was restored"),
        }
    }
}

pub fn forward<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, w: &Option<Weights<B>>, qkv: Act<B>) -> Qkv<B> {
    match (w, p.rotary) {
        (Some(_), _) => Qkv::Normed { rotated: Some(normed(cx, p, of_heads(cx, w), &qkv)), projected: qkv },
        (None, Some(r)) => Qkv::Rotated(cx.b.rope(qkv, r, p.heads)),
        (None, None) => Qkv::Rotated(qkv),
    }
}

/// Computes the gradient of the projections from that of attention's input.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    p: &Pattern<B>,
    w: &Option<Weights<B>>,
    dqkv: Act<B>,
    saved: Qkv<B>,
    g: &mut Option<Grads<B>>,
) -> Act<B> {
    match (saved, p.rotary) {
        (Qkv::Normed { projected, .. }, _) => {
            let (n, g) = (of_heads(cx, w), g.as_mut().expect("norms of heads have gradients"));
            cx.b.qk_norm_rope_bwd(dqkv, &projected, n, rotary_of(p), p.heads, [&mut g.q, &mut g.k])
        }
        (Qkv::Rotated(_), Some(r)) => cx.b.rope_bwd(dqkv, r, p.heads),
        (Qkv::Rotated(_), None) => dqkv,
    }
}

fn normed<B: Backend>(cx: &Ctx<B>, p: &Pattern<B>, n: HeadRms<B>, projected: &Act<B>) -> Act<B> {
    cx.b.qk_norm_rope(projected, n, rotary_of(p), p.heads)
}

fn rotary_of<'a, B: Backend>(p: &Pattern<'a, B>) -> Rotary<'a, B> {
    p.rotary.expect("no model norms its heads without rotating them")
}

fn of_heads<'a, B: Backend>(cx: &Ctx<B>, w: &'a Option<Weights<B>>) -> HeadRms<'a, B> {
    let w = w.as_ref().expect("a layer with norms of heads has their weights");
    HeadRms { q: &w.q, k: &w.k, eps: cx.norms.eps }
}
