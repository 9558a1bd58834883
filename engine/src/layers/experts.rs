//! Experts: y = p (silu(x Wg^T) * x Wu^T) Wd^T for the rows x of each expert, which the router weights by p. The weight
//! is applied before the last product, so that backward needs no outputs of experts: dp = sum of da (a / p), with a the
//! last product's input.

use super::Ctx;
use super::dispatch::Rows;
use crate::backend::{Backend, Groups, TensorView, TensorViewMut};
use crate::model::param_specs::Experts;

/// Weights of this rank's experts, and of its columns of them.
pub type Weights<'a, B> = Experts<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Experts<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs.
pub struct Saved<B: Backend> {
    x: Rows<B, B::Act>,
    /// p, `[R, 1]`.
    weights: Rows<B, f32>,
    /// x Wu^T with both parts of Wu, `[R, 2F]`.
    up: Rows<B, B::Act>,
    /// a, `[R, F]`; recomputed if it was dropped.
    a: Option<Rows<B, B::Act>>,
}

impl<B: Backend> Saved<B> {
    /// Drops the tensor that is cheap to recompute.
    pub fn slim(&mut self) {
        self.a = None;
    }
}

/// The first product: rows x `[R, D]`, their weights `[R, 1]`.
pub fn up<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    x: Rows<B, B::Act>,
    weights: Rows<B, f32>,
    of: Groups<B>,
) -> Saved<B> {
    let mut up = x.alike(cx.b, w.up.weight.rows() / of.counts.len());
    cx.b.grouped_nt(&x.used(), &w.up.weight, of, &mut up.used_mut()); // [R, D] -> [R, 2F]
    Saved { x, weights, up, a: None }
}

/// x `[R, D]` -> y `[R, D]`.
pub fn forward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    x: Rows<B, B::Act>,
    weights: Rows<B, f32>,
    of: Groups<B>,
) -> (Rows<B, B::Act>, Saved<B>) {
    let saved = up(cx, w, x, weights, of);
    let a = activation(cx, &saved.up, &saved.weights); // a = p silu(g) * u, [R, 2F] -> [R, F]
    let mut y = a.alike(cx.b, saved.x.cols());
    cx.b.grouped_nt(&a.used(), &w.down.weight, of, &mut y.used_mut()); // y = a Wd^T, [R, F] -> [R, D]
    (y, Saved { a: Some(a), ..saved })
}

/// Computes dx `[R, D]` and dp `[R, 1]` from dy `[R, D]`.
pub fn backward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    dy: Rows<B, B::Act>,
    saved: Saved<B>,
    of: Groups<B>,
    g: &mut Grads<B>,
) -> (Rows<B, B::Act>, Rows<B, f32>) {
    let b = cx.b;
    let Saved { x, weights, mut up, a } = saved;
    let a = a.unwrap_or_else(|| activation(cx, &up, &weights));
    b.grouped_tn_acc(&dy.used(), &a.used(), of, &mut g.down.weight); // dWd += dy^T a
    let mut da = a;
    b.grouped_nn(&dy.used(), &w.down.weight, of, &mut da.used_mut()); // da = dy Wd, [R, D] -> [R, F]
    let mut dp = weights.alike(b, 1);
    b.swiglu_weighted_bwd(&da.used(), &mut up.used_mut(), &weights.used(), &mut dp.used_mut());
    drop(da);
    b.grouped_tn_acc(&up.used(), &x.used(), of, &mut g.up.weight); // dWu += dup^T x
    let mut dx = dy;
    b.grouped_nn(&up.used(), &w.up.weight, of, &mut dx.used_mut()); // dx = dup Wu, [R, 2F] -> [R, D]
    (dx, dp)
}

fn activation<B: Backend>(cx: &Ctx<B>, up: &Rows<B, B::Act>, weights: &Rows<B, f32>) -> Rows<B, B::Act> {
    let mut a = up.alike(cx.b, up.cols() / 2);
    cx.b.swiglu_weighted(&up.used(), &weights.used(), &mut a.used_mut());
    a
}
