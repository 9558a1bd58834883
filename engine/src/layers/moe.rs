//! y = sum over the k experts e of a token of p_e Expert_e(x): a feed-forward layer with experts (Shazeer et al. 2017).
//! No token is dropped. The rows that do not fit the planned memory are computed in further rounds, and again in
//! backward; the first round is kept. It is the last one of the forward pass and the first one of the backward pass, so
//! that the others need no memory of their own.

use super::dispatch::{self, Dispatch, InRound, Rows};
use super::region::Gather;
use super::{Ctx, experts, router};
use crate::backend::{Acc, Act, Backend, Balance, Collectives, Router, TensorView, TensorViewMut};
use crate::model::param_specs::Moe;
use std::cell::Cell;

pub type Weights<'a, B> = Moe<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Moe<TensorViewMut<'a, B, f32>>;

/// The settings and the groups that all layers with experts share.
pub struct Shape<'a, B: Backend> {
    pub router: Router,
    /// E, on all ranks.
    pub experts: usize,
    /// The ranks that share the experts.
    pub group: &'a B::Group,
    /// Rows that a rank has memory for, as a multiple of those that it gets if all experts get the same number.
    pub buffer: f64,
    /// Counts the rounds beyond the first one of each backward pass.
    pub further_rounds: &'a Cell<u64>,
}

impl<B: Backend> Clone for Shape<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Shape<'_, B> {}

impl<B: Backend> Shape<'_, B> {
    /// R, for this number of choices a rank.
    pub fn rows(&self, choices: usize) -> usize {
        let (ranks, k) = (self.group.size(), self.router.per_token);
        // A token chooses each expert at most once.
        let most = ranks * choices / k * k.min(self.experts / ranks);
        ((self.buffer * choices as f64).ceil() as usize).clamp(1, most.max(1))
    }
}

/// Where a layer's backward adds up its auxiliary losses and its load.
pub struct Losses<'a, B: Backend> {
    pub balance: Balance<'a, B>,
    /// `[1, Total::COUNT]`.
    pub totals: &'a mut Acc<B>,
    /// The choices of each expert, `[1, E]`.
    pub load: &'a mut Acc<B>,
}

/// The tensors that backward needs besides the input.
pub struct Saved<B: Backend> {
    router: router::Saved<B>,
    dispatch: Dispatch<B>,
    /// The tensors of the first round.
    kept: experts::Saved<B>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensors that are cheap to recompute. The rows of experts are, unless several ranks share them.
    pub fn slim(&mut self) {
        self.kept.slim();
        if self.dispatch.is_local() {
            self.kept.drop_rows();
        }
    }
}

/// x `[T/tp, D]` -> y `[T/tp, D]`.
pub fn forward<B: Backend>(cx: &Ctx<B>, m: &Shape<B>, w: &Weights<B>, x: &Act<B>) -> (Act<B>, Saved<B>) {
    let b = cx.b;
    let x = cx.region.gather(b, x).wait(); // [T/tp, D] -> [T, D]
    let router = router::forward(cx, m, &w.router, &x);
    let d = Dispatch::new(b, m, &router.choices.experts);
    let (mut y, mut kept) = (d.returned(b, x.cols()), None);
    for i in (0..d.rounds()).rev() {
        let round = d.round(b, m, i);
        let (rows, weights) = chosen(m, &round, &x, &router);
        let (out, saved) = experts::forward(cx, &w.experts, rows, weights, round.groups());
        kept = (i == 0).then_some(saved);
        y = round.from_experts(out, y);
    }
    let kept = kept.expect("the first round is computed last");
    let y = dispatch::sum(b, &d, y); // [T k, D] -> [T, D]
    (cx.region.scatter(b, y).wait(), Saved { router, dispatch: d, kept })
}

/// Computes dx from dy, whose all-gather may be in flight.
#[allow(clippy::too_many_arguments)]
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    m: &Shape<B>,
    w: &Weights<B>,
    dy: Gather<B>,
    x: Act<B>,
    saved: Saved<B>,
    g: &mut Grads<B>,
    losses: Losses<B>,
) -> Act<B> {
    let b = cx.b;
    let Saved { router, dispatch: d, kept } = saved;
    m.further_rounds.set(m.further_rounds.get() + d.rounds() as u64 - 1);
    let x = cx.region.collect(b, x); // x in flight
    let dy = dy.wait(); // [T/tp, D] -> [T, D]
    let x = x.wait();
    let (mut kept, mut dx, mut dp) = (Some(kept), d.returned(b, x.cols()), d.returned(b, 1));
    for i in 0..d.rounds() {
        let round = d.round(b, m, i);
        let mut saved = kept.take().unwrap_or_else(|| {
            let (rows, weights) = chosen(m, &round, &x, &router);
            experts::up(cx, &w.experts, rows, weights, round.groups())
        });
        saved.restore(|| round.to_experts(&x, m.router.per_token));
        let dy = round.to_experts(&dy, m.router.per_token);
        let (dx_rows, dp_rows) = experts::backward(cx, &w.experts, dy, saved, round.groups(), &mut g.experts);
        dx = round.from_experts(dx_rows, dx);
        dp = round.from_experts(dp_rows, dp);
    }
    drop(dy);
    let dx = dispatch::sum(b, &d, dx); // [T k, D] -> [T, D]
    let dp = in_order(b, &d, dp); // [T k, 1] -> [T, k]
    let dx = b.add(dx, &router::backward(cx, m, &w.router, &dp, &x, router, &mut g.router, losses));
    cx.region.scatter(b, dx).wait()
}

/// The rows of x and the weights of a round.
fn chosen<B: Backend>(
    m: &Shape<B>,
    round: &InRound<B>,
    x: &Act<B>,
    router: &router::Saved<B>,
) -> (Rows<B, B::Act>, Rows<B, f32>) {
    let weights = &router.choices.weights;
    let rows = round.to_experts(x, m.router.per_token);
    (rows, round.to_experts(&weights.view(0, weights.len(), 1), 1))
}

/// Sorted numbers, one for each choice, in the order of the choices.
fn in_order<B: Backend>(b: &B, d: &Dispatch<B>, sorted: Option<Acc<B>>) -> Acc<B> {
    let (sorted, places) = (sorted.expect("there is at least one round"), d.places());
    let mut out = b.alloc(places.len(), 1);
    b.take_rows(&sorted, &places.view(0, places.len(), 1), 1, &mut out);
    out.reshape(places.rows(), places.cols())
}
