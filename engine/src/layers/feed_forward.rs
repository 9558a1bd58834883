//! What follows attention in a layer: an MLP, or experts in its place.

use super::region::Gather;
use super::{Ctx, block, mlp, moe};
use crate::backend::{Act, Backend};

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
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &block::Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    match (&w.mlp, &w.moe, &cx.moe) {
        (Some(w), None, _) => {
            let (y, saved) = mlp::forward(cx, w, x);
            (y, Saved::Mlp(saved))
        }
        (None, Some(w), Some(shape)) => {
            let (y, saved) = moe::forward(cx, shape, w, x);
            (y, Saved::Moe(saved))
        }
        _ => panic!("a layer has an MLP or experts, of a stage that has them"),
    }
}

/// Computes dx from dy, whose all-gather may be in flight. `losses` is there if the model has experts.
#[allow(clippy::too_many_arguments)]
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    w: &block::Weights<B>,
    dy: Gather<B>,
    x: Act<B>,
    saved: Saved<B>,
    g: &mut block::Grads<B>,
    losses: Option<moe::Losses<B>>,
) -> Act<B> {
    match (saved, &w.mlp, &mut g.mlp, &w.moe, &mut g.moe, &cx.moe, losses) {
        (Saved::Mlp(saved), Some(w), Some(g), ..) => mlp::backward(cx, w, dy, x, saved, g),
        (Saved::Moe(saved), _, _, Some(w), Some(g), Some(shape), Some(losses)) => {
            moe::backward(cx, shape, w, dy, x, saved, g, losses)
        }
        _ => panic!("a layer has weights and gradients of what it saved"),
    }
}
