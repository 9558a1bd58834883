//! x = s E[ids] + P[positions]: the token embedding, times a scale where the model has one (Gemma, LLM-jp), plus
//! learned positions where it has them (GPT). The rows of both tables are sharded over the tensor-parallel ranks.

use super::Ctx;
use crate::backend::{Act, Backend, Tensor, TensorView, TensorViewMut};
use crate::model::param_specs::Embedding;

/// The rows of this rank, `cx.vocab_start ..` of the vocabulary and `cx.positions_start ..` of the positions.
pub type Weights<'a, B> = Embedding<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Embedding<TensorViewMut<'a, B, f32>>;

/// The rows of a micro-batch, `[T, 1]` each.
pub struct Tokens<'a, B: Backend> {
    pub ids: &'a Tensor<B, u32>,
    pub positions: &'a Tensor<B, u32>,
}

/// -> x `[T/tp, D]`. A rank adds zeros for the rows that it does not hold.
pub fn forward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, t: &Tokens<B>) -> Act<B> {
    let b = cx.b;
    let mut x = b.embed(t.ids, &w.table, cx.vocab_start);
    if let Some(positions) = &w.positions {
        x = b.add(x, &b.embed(t.positions, positions, cx.positions_start));
    }
    let x = cx.region.scatter(b, x).wait(); // [T, D] -> [T/tp, D]
    scaled(cx, x)
}

/// dE += s times the rows of dx, dP += the rows of dx.
pub fn backward<B: Backend>(cx: &Ctx<B>, t: &Tokens<B>, dx: Act<B>, g: &mut Grads<B>) {
    let dx = cx.region.collect(cx.b, scaled(cx, dx)).wait(); // [T/tp, D] -> [T, D]
    cx.b.embed_bwd(t.ids, &dx, cx.vocab_start, &mut g.table);
    if let Some(positions) = &mut g.positions {
        cx.b.embed_bwd(t.positions, &dx, cx.positions_start, positions);
    }
}

/// No model has both a scale and learned positions, so that scaling the sum scales the tokens' rows.
fn scaled<B: Backend>(cx: &Ctx<B>, x: Act<B>) -> Act<B> {
    match cx.embedding_scale {
        Some(scale) => cx.b.scale(x, scale),
        None => x,
    }
}
