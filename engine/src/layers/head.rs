//! The final norm, the output layer and the loss: logits = RMSNorm(x) E^T,
//! loss = sum over rows of w (log Z - logit[target]) + z w log(Z)^2, Z = sum of exp(logits).
//!
//! Logits are computed for a chunk of rows at a time, together with loss, dlogits, dx and dE, so that the whole matrix
//! of logits never exists and forward already returns dx. The tensor-parallel ranks exchange three floats per row,
//! never logits.

use super::Ctx;
use crate::backend::{Acc, Act, Backend, Collectives, Tensor, TensorView, TensorViewMut, Xent};
use crate::model::param_specs::Head;

/// Norm and this rank's rows of the output layer: `lm_head`, or the embedding's table if they are tied.
pub type Weights<'a, B> = Head<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Head<TensorViewMut<'a, B, f32>>;

/// The targets of the loss.
pub struct Targets<'a, B: Backend> {
    /// The next token of each row, `[T, 1]`.
    pub ids: &'a Tensor<B, u32>,
    /// w, `[T, 1]`.
    pub weights: &'a Acc<B>,
    pub z_loss: f32,
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
    let (xn, rstd) = b.rmsnorm(x, &w.norm, cx.eps);
    let xn = cx.region.collect(b, xn).wait(); // [T/tp, D] -> [T, D]
    let mut dxn = b.alloc(xn.rows(), xn.cols());
    for rows in chunks(xn.rows(), b.logits_rows(w.table.rows())) {
        let xc = xn.view_rows(rows.clone());
        let (ids, weights) = (t.ids.view_rows(rows.clone()), t.weights.view_rows(rows.clone()));
        let (logits, stats) = logits(cx, w, &xc, &ids);
        b.xent_totals(&stats, &weights, totals);
        let dlogits = b.xent_grad(logits, &stats, &ids, &weights, Xent { first: cx.vocab_start, z_loss: t.z_loss });
        b.matmul_nn_into(&dlogits, &w.table, &mut dxn.view_rows_mut(rows)); // dxn = dlogits E
        b.matmul_tn_acc(&dlogits, &xc, &mut g.table); // dE += dlogits^T xn
    }
    let dxn = cx.region.scatter(b, dxn).wait(); // sum over tp, [T, D] -> [T/tp, D]
    b.rmsnorm_bwd(dxn, x, &rstd, &w.norm, &mut g.norm)
}

/// Computes the loss alone.
pub fn evaluate<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>, t: &Targets<B>, totals: &mut Acc<B>) {
    let b = cx.b;
    let (xn, _) = b.rmsnorm(x, &w.norm, cx.eps);
    let xn = cx.region.collect(b, xn).wait();
    for rows in chunks(xn.rows(), b.logits_rows(w.table.rows())) {
        let xc = xn.view_rows(rows.clone());
        let (ids, weights) = (t.ids.view_rows(rows.clone()), t.weights.view_rows(rows));
        let (_, stats) = logits(cx, w, &xc, &ids);
        b.xent_totals(&stats, &weights, totals);
    }
}

/// Returns logits `[C, V/tp]` and the statistics over the whole vocabulary `[C, 3]`.
fn logits<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>, ids: &Tensor<B, u32>) -> (Act<B>, Acc<B>) {
    let (b, group) = (cx.b, cx.region.group());
    let logits = b.matmul_nt(x, &w.table);
    let stats = group.all_gather(b, b.xent_stats(&logits, ids, cx.vocab_start)).wait(); // [C, 3] -> [tp C, 3]
    let stats = b.xent_combine(&stats, group.size());
    (logits, stats)
}

fn chunks(rows: usize, each: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..rows).step_by(each).map(move |at| at..(at + each).min(rows))
}
