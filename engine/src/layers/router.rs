//! The router (Shazeer et al. 2017): l = x G^T + b in f32; the k experts with the largest l, weighted by a softmax.

use super::Ctx;
use super::linear;
use super::moe::{Losses, Shape};
use crate::backend::{Acc, Act, Backend, Choices};

/// The tensors that backward needs besides the input.
pub struct Saved<B: Backend> {
    /// `[T, E]`.
    logits: Acc<B>,
    pub choices: Choices<B>,
}

/// The experts of each token of x `[T, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, m: &Shape<B>, w: &linear::Weights<B>, x: &Act<B>) -> Saved<B> {
    let logits = cx.b.router_logits(x, &w.weight, w.bias.as_deref()); // l = x G^T + b, [T, D] -> [T, E]
    let choices = cx.b.route(&logits, m.router); // [T, E] -> [T, k]
    Saved { logits, choices }
}

/// Computes dx `[T, D]` from dweights `[T, k]`, and the auxiliary losses with their gradients.
#[allow(clippy::too_many_arguments)]
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    m: &Shape<B>,
    w: &linear::Weights<B>,
    dweights: &Acc<B>,
    x: &Act<B>,
    saved: Saved<B>,
    g: &mut linear::Grads<B>,
    losses: Losses<B>,
) -> Act<B> {
    let b = cx.b;
    let Losses { balance, totals, load } = losses;
    // [T, k] -> [T, E]
    let dl = b.route_bwd(dweights, &saved.logits, &saved.choices, m.router, balance, [totals, load]);
    let mut rounded = b.alloc(dl.rows(), dl.cols());
    b.round(&dl, &mut rounded);
    b.matmul_tn_acc(&rounded, x, &mut g.weight); // dG += dl^T x
    if let Some(bias) = &mut g.bias {
        b.bias_bwd(&rounded, bias); // db += the sum of dl
    }
    b.matmul_nn(&rounded, &w.weight) // dx = dl G
}
