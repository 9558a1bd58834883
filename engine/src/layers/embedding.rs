//! x = E[ids]: the token embedding, whose vocabulary rows are sharded over the tensor-parallel ranks.

use super::Ctx;
use crate::backend::{Act, Backend, Tensor, TensorView, TensorViewMut};
use crate::model::param_specs::Embedding;

/// The rows of this rank, `cx.vocab_start ..` of the vocabulary.
pub type Weights<'a, B> = Embedding<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Embedding<TensorViewMut<'a, B, f32>>;

/// ids `[T, 1]` -> x `[T/tp, D]`. A rank adds zeros for the ids that it does not hold.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, ids: &Tensor<B, u32>) -> Act<B> {
    cx.region.scatter(cx.b, cx.b.embed(ids, &w.table, cx.vocab_start)).wait()
}

/// dE += the rows of dx.
pub fn backward<B: Backend>(cx: &Ctx<B>, ids: &Tensor<B, u32>, dx: &Act<B>, g: &mut Grads<B>) {
    let dx = cx.region.gather(cx.b, dx).wait(); // [T/tp, D] -> [T, D]
    cx.b.embed_bwd(ids, &dx, cx.vocab_start, &mut g.table);
}
