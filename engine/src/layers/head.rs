//! The final norm, the output layer and the loss: logits = Norm(x) E^T, soft-capped in Gemma 2,
//! loss = sum over rows of w (log Z - logit[target]) + z w log(Z)^2, Z = sum of exp(logits).
//!
//! Logits are computed for a chunk of rows at a time, together with loss, dlogits, dx and dE, so that the whole matrix
//! of logits never exists and forward already returns dx. Rows whose target does not count come last, and chunks of
//! them are left out. The tensor-parallel ranks exchange three floats per row, never logits.

use super::{Ctx, norm};
use crate::backend::{Acc, Act, Backend, Collectives, Tensor, TensorView, TensorViewMut, Xent};
use crate::model::param_specs::Head;

/// Norm and this rank's rows of the output layer: `lm_head`, or the embedding's table if they are tied.
pub type Weights<'a, B> = Head<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Head<TensorViewMut<'a, B, f32>>;

/// The targets of the loss: those that count first, in the order of their rows, then the others.
pub struct Targets<'a, B: Backend> {
    /// The row of x that predicts each target, `[T, 1]`.
    pub rows: &'a Tensor<B, u32>,
    /// The inverse of `rows`: for each row of x the index of its target, or T where the target does not count,
    /// `[T, 1]`.
    pub places: &'a Tensor<B, u32>,
    /// The next token of each of `rows`, `[T, 1]`.
    pub ids: &'a Tensor<B, u32>,
    /// w, `[T, 1]`: 0 for the targets that do not count.
    pub weights: &'a Acc<B>,
    /// The number of targets that count. No logits are computed for chunks beyond them.
    pub counted: usize,
    pub z_loss: f32,
    /// Soft-cap of the logits.
    pub cap: Option<f32>,
}

impl<B: Backend> Targets<'_, B> {
    /// The loss over the columns of this rank.
    fn loss(&self, cx: &Ctx<B>) -> Xent {
        Xent { first: cx.vocab_start, z_loss: self.z_loss, cap: self.cap }
    }
}

/// x `[T/tp, D]` -> dx `[T/tp, D]`. Adds the sums of loss, log(Z)^2 and w to `totals` `[1, Total::COUNT]`.
pub fn forward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    x: &Act<B>,
    t: &Targets<B>,
    g: &mut Grads<B>,
    totals: &mut Acc<B>,
) -> Act<B> {
    let b = cx.b;
    let (xn, stats) = norm::forward(cx, &w.norm, x);
    let xn = cx.region.collect(b, xn).wait(); // [T/tp, D] -> [T, D]
    let xn = b.embed(t.rows, &xn, 0); // the rows of the targets
    let mut dxn = b.alloc(xn.rows(), xn.cols());
    for rows in chunks(t.counted, xn.rows(), b.logits_rows(w.table.rows())) {
        let xc = xn.view_rows(rows.clone());
        let (ids, weights) = (t.ids.view_rows(rows.clone()), t.weights.view_rows(rows.clone()));
        let (logits, stats) = logits(cx, w, &xc, &ids, t.loss(cx));
        b.xent_totals(&stats, &weights, totals);
        let dlogits = b.xent_grad(logits, &stats, &ids, &weights, t.loss(cx));
        b.matmul_nn_into(&dlogits, &w.table, &mut dxn.view_rows_mut(rows)); // dxn = dlogits E
        b.matmul_tn_acc(&dlogits, &xc, &mut g.table); // dE += dlogits^T xn
    }
    drop(xn);
    let dxn = b.embed(t.places, &dxn, 0); // in the order of x; zeros where the target does not count
    let dxn = cx.region.scatter(b, dxn).wait(); // sum over tp, [T, D] -> [T/tp, D]
    norm::backward(cx, &w.norm, dxn, x, &stats, &mut g.norm)
}

/// Computes the loss alone: `each` gets the statistics `[C, 3]` (see [`Backend::xent_stats`]) and the weights `[C, 1]`
/// of a chunk of targets, chunk after chunk, those that count first.
pub fn evaluate<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    x: &Act<B>,
    t: &Targets<B>,
    each: &mut dyn FnMut(&Acc<B>, &Acc<B>),
) {
    let b = cx.b;
    let (xn, _) = norm::forward(cx, &w.norm, x);
    let xn = cx.region.collect(b, xn).wait();
    let xn = b.embed(t.rows, &xn, 0);
    for rows in chunks(t.counted, xn.rows(), b.logits_rows(w.table.rows())) {
        let xc = xn.view_rows(rows.clone());
        let (ids, weights) = (t.ids.view_rows(rows.clone()), t.weights.view_rows(rows));
        let (_, stats) = logits(cx, w, &xc, &ids, t.loss(cx));
        each(&stats, &weights);
    }
}

/// The logits of all rows, `[T, V/tp]`: what training never makes.
pub fn whole_logits<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> Act<B> {
    let (xn, _) = norm::forward(cx, &w.norm, x);
    cx.b.matmul_nt(&cx.region.collect(cx.b, xn).wait(), &w.table)
}

/// Returns logits `[C, V/tp]` and the statistics over the whole vocabulary `[C, 3]`.
fn logits<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>, ids: &Tensor<B, u32>, loss: Xent) -> (Act<B>, Acc<B>) {
    let (b, group) = (cx.b, cx.region.group());
    let logits = b.matmul_nt(x, &w.table);
    let stats = group.all_gather(b, b.xent_stats(&logits, ids, loss)).wait(); // [C, 3] -> [tp C, 3]
    let stats = b.xent_combine(&stats, group.size());
    (logits, stats)
}

/// Chunks of `each` rows that hold the first `counted` of `rows` rows. The sizes of the chunks do not depend on
/// `counted`, so that the memory plan of a step holds for all of them.
fn chunks(counted: usize, rows: usize, each: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..counted).step_by(each).map(move |at| at..(at + each).min(rows))
}
