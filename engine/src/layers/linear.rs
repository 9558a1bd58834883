//! y = x W^T + b with a weight that tensor parallelism shards: by its rows, as the first product of a region
//! (column-parallel in Megatron-LM's terms), or by its columns, as the last one (row-parallel).

use super::Ctx;
use super::region::Gather;
use crate::backend::{Act, Backend, TensorView, TensorViewMut};
use crate::model::param_specs::Linear;

pub type Weights<'a, B> = Linear<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Linear<TensorViewMut<'a, B, f32>>;

/// Column-parallel: x `[T/tp, k]` -> `[T, n/tp]`.
pub fn columns<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> Act<B> {
    let (_, y) = cx.region.gather(cx.b, x).nt(cx.b, &w.weight, w.bias.as_deref()); // [T/tp, k] -> [T, k] -> [T, n/tp]
    y
}

/// Computes dx `[T/tp, k]` from dy `[T, n/tp]`.
pub fn columns_backward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, dy: Act<B>, x: Act<B>, g: &mut Grads<B>) -> Act<B> {
    let b = cx.b;
    let x = cx.region.collect(b, x); // x in flight ...
    let dx = b.matmul_nn(&dy, &w.weight); // ... while computing dx = dy W
    let x = x.wait();
    let dx = cx.region.scatter(b, dx); // dx in flight ...
    b.matmul_tn_acc(&dy, &x, &mut g.weight); // ... while computing dW += dy^T x
    add_bias_gradient(b, &dy, g);
    dx.wait()
}

/// Row-parallel: x `[T, k/tp]` -> `[T/tp, n]`. The bias is added once, after the sum over the ranks.
pub fn rows<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, x: &Act<B>) -> Act<B> {
    let y = cx.region.nt_scatter(cx.b, x, &w.weight).wait(); // [T, n] -> [T/tp, n]
    match &w.bias {
        Some(bias) => cx.b.add_bias(y, bias),
        None => y,
    }
}

/// Computes dx `[T, k/tp]` from dy `[T/tp, n]`, whose all-gather may be in flight.
pub fn rows_backward<B: Backend>(cx: &Ctx<B>, w: &Weights<B>, dy: Gather<B>, x: &Act<B>, g: &mut Grads<B>) -> Act<B> {
    let b = cx.b;
    add_bias_gradient(b, dy.own, g); // of this rank's rows
    let (dy, dx) = dy.nn(b, &w.weight); // dx = dy W
    b.matmul_tn_acc(&dy, x, &mut g.weight); // dW += dy^T x
    dx
}

/// db += the sum of the rows of dy, where there is a bias.
fn add_bias_gradient<B: Backend>(b: &B, dy: &Act<B>, g: &mut Grads<B>) {
    if let Some(bias) = &mut g.bias {
        b.bias_bwd(dy, bias);
    }
}
