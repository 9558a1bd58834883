//! The feed-forward part of a layer: an MLP, or experts in its place.

use super::region::Gather;
use super::{Ctx, mlp, moe};
use crate::backend::{Act, Backend, TensorView, TensorViewMut};
use crate::model::param_specs::FeedForward;

pub type Weights<'a, B> = FeedForward<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = FeedForward<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs besides the input.
pub enum Saved<B: Backend> {
    Mlp(mlp::Saved<B>),
    Moe(moe::Saved<B>),
}

impl<B: Backend> Saved<B> {
    /// Drops the tensors that are cheap to recompute.
    pub fn slim(&mut self) {
        match self {
            Saved::Mlp(saved) => saved.slim(),
            Saved::Moe(saved) => saved.slim(),
        }
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    match w {
        FeedForward::Mlp(w) => {
            let (y, saved) = mlp::forward(cx, w, x);
            (y, Saved::Mlp(saved))
        }
        FeedForward::Moe(w) => {
            let (y, saved) = moe::forward(cx, shape(cx), w, x);
            (y, Saved::Moe(saved))
        }
    }
}

/// Computes dx from dy, whose all-gather may be in flight. `losses` is there if the layer has experts.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    dy: Gather<B>,
    x: Act<B>,
    saved: Saved<B>,
    g: &mut Grads<B>,
    losses: Option<moe::Losses<B>>,
) -> Act<B> {
    match (saved, w, g, losses) {
        (Saved::Mlp(saved), FeedForward::Mlp(w), FeedForward::Mlp(g), _) => mlp::backward(cx, w, dy, x, saved, g),
        (Saved::Moe(saved), FeedForward::Moe(w), FeedForward::Moe(g), Some(losses)) => {
            moe::backward(cx, shape(cx), w, dy, x, saved, g, losses)
        }
        _ => panic!("a layer has weights and gradients of what it saved"),
    }
}

fn shape<'c, 'a, B: Backend>(cx: &'c Ctx<'a, B>) -> &'c moe::Shape<'a, B> {
    cx.moe.as_ref().expect("a stage with experts knows how they are shared")
}
