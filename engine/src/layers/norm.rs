//! The norms of a model: RMSNorm (Zhang & Sennrich 2019), also with weights that are differences from 1 (Gemma), and
//! LayerNorm (Ba et al. 2016). `Ctx` says which kind the model has.

use super::Ctx;
use crate::backend::{Acc, Act, Backend, LayerNorm, Rms, TensorView, TensorViewMut};
use crate::config::NormKind;
use crate::model::param_specs::Norm;

pub type Weights<'a, B> = Norm<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Norm<TensorViewMut<'a, B, f32>>;

/// The kind of a model's norms with its epsilon.
#[derive(Debug, Clone, Copy)]
pub struct Norms {
    pub kind: NormKind,
    pub eps: f32,
}

/// A norm with the weights that it needs.
enum Op<'a, B: Backend> {
    Rms(Rms<'a, B>),
    Layer(LayerNorm<'a, B>),
}

impl Norms {
    fn with<'a, B: Backend>(self, w: &'a Weights<B>) -> Op<'a, B> {
        let (eps, weight) = (self.eps, &*w.weight);
        match self.kind {
            NormKind::Rms => Op::Rms(Rms { w: weight, eps, offset: 0.0 }),
            NormKind::RmsPlusOne => Op::Rms(Rms { w: weight, eps, offset: 1.0 }),
            NormKind::Layer => {
                Op::Layer(LayerNorm { w: weight, bias: w.bias.as_ref().expect("a LayerNorm has a bias"), eps })
            }
        }
    }
}

/// x `[T, D]` -> y = Norm(x), and the statistics of its rows.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Acc<B>) {
    match cx.norms.with(w) {
        Op::Rms(n) => cx.b.rmsnorm(x, n),
        Op::Layer(n) => cx.b.layernorm(x, n),
    }
}

/// h = x + r, y = Norm(h): (h, y, statistics).
pub fn add_forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>, r: Act<B>) -> (Act<B>, Act<B>, Acc<B>) {
    match cx.norms.with(w) {
        Op::Rms(n) => cx.b.add_rmsnorm(x, r, n),
        Op::Layer(n) => {
            let h = cx.b.add(r, x);
            let (y, stats) = cx.b.layernorm(&h, n);
            (h, y, stats)
        }
    }
}

/// y, recomputed from the tensors that forward saved.
pub fn again<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>, stats: &Acc<B>) -> Act<B> {
    match cx.norms.with(w) {
        Op::Rms(n) => cx.b.rmsnorm_recompute(x, stats, n),
        Op::Layer(n) => cx.b.layernorm(x, n).0,
    }
}

/// Computes dx from dy.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    dy: Act<B>,
    x: &Act<B>,
    stats: &Acc<B>,
    g: &mut Grads<B>,
) -> Act<B> {
    match cx.norms.with(w) {
        Op::Rms(n) => cx.b.rmsnorm_bwd(dy, x, stats, n, &mut g.weight),
        Op::Layer(n) => cx.b.layernorm_bwd(None, dy, x, stats, n, both(g)),
    }
}

/// Computes dx + dres from dy: the gradient of the residual stream is added before the result is rounded.
pub fn backward_add<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    dres: &Act<B>,
    dy: Act<B>,
    x: &Act<B>,
    stats: &Acc<B>,
    g: &mut Grads<B>,
) -> Act<B> {
    match cx.norms.with(w) {
        Op::Rms(n) => cx.b.rmsnorm_bwd_add(dres, dy, x, stats, n, &mut g.weight),
        Op::Layer(n) => cx.b.layernorm_bwd(Some(dres), dy, x, stats, n, both(g)),
    }
}

fn both<'g, B: Backend>(g: &'g mut Grads<B>) -> [&'g mut Acc<B>; 2] {
    [&mut g.weight, g.bias.as_mut().expect("a LayerNorm has a bias")]
}

/// A norm of a sublayer's output, before the residual sum: what its backward needs, its input and statistics.
pub struct SavedPost<B: Backend>(Act<B>, Acc<B>);

/// y = Norm(x) where the model has such a norm, else x.
pub fn post<B: Backend>(cx: &Ctx<B>, w: &Option<Weights<B>>, x: Act<B>) -> (Act<B>, Option<SavedPost<B>>) {
    match w {
        Some(w) => {
            let (y, stats) = forward(cx, w, &x);
            (y, Some(SavedPost(x, stats)))
        }
        None => (x, None),
    }
}

/// Computes dx from dy where the model has such a norm; else dx is dy, and nothing is returned.
pub fn post_backward<B: Backend>(
    cx: &Ctx<B>,
    w: &Option<Weights<B>>,
    dy: &Act<B>,
    saved: Option<SavedPost<B>>,
    g: &mut Option<Grads<B>>,
) -> Option<Act<B>> {
    let (w, SavedPost(x, stats), g) = (w.as_ref()?, saved?, g.as_mut()?);
    Some(backward(cx, w, cx.b.copy(dy), &x, &stats, g))
}
