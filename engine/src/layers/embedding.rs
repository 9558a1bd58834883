//! x = E[ids]: the token embedding, cut by vocabulary rows over the tensor-parallel ranks.

use super::Ctx;
use crate::backend::{Act, Backend, Tensor, TensorView, TensorViewMut};

/// The rows of this rank.
pub struct Weights<'a, B: Backend> {
    /// `[V/tp, D]`.
    pub table: TensorView<'a, B, B::Act>,
    /// The id of its first row.
    pub first: usize,
}

/// ids `[T, 1]` -> x `[T/tp, D]`; the ranks that do not hold an id add zeros.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, ids: &Tensor<B, u32>) -> Act<B> {
    cx.region.scatter(cx.b, cx.b.embed(ids, &w.table, w.first)).wait()
}

/// dE += the rows of dx.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    first: usize,
    ids: &Tensor<B, u32>,
    dx: &Act<B>,
    dtable: &mut TensorViewMut<B, f32>,
) {
    let dx = cx.region.gather(cx.b, dx).wait(); // [T/tp, D] -> [T, D]
    cx.b.embed_bwd(ids, &dx, first, dtable);
}
