//! Experts: y = p (silu(x Wg^T) * x Wu^T) Wd^T for the rows x of each expert, which the router weights by p. The weight
//! is applied before the last product, so that backward needs no outputs of experts: dp = sum of da (a / p), with a the
//! last product's input. GPT-OSS's experts have biases: z = x Wu^T + bu, y = a Wd^T + p bd, and dp also has dy . bd.

use super::Ctx;
use super::dispatch::Rows;
use crate::backend::{Acc, Backend, GroupBias, Groups, TensorView, TensorViewMut};
use crate::config::Activation;
use crate::model::param_specs::Experts;

/// Weights of this rank's experts, and of its columns of them.
pub type Weights<'a, B> = Experts<TensorView<'a, B, <B as Backend>::Act>>;
/// Gradients, shaped as the weights.
pub type Grads<'a, B> = Experts<TensorViewMut<'a, B, f32>>;

/// The tensors that backward needs.
pub struct Saved<B: Backend> {
    /// `[R, D]`; see [`Saved::restore`].
    x: Option<Rows<B, B::Act>>,
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

    /// Drops the rows, which [`Saved::restore`] takes again.
    pub fn drop_rows(&mut self) {
        self.x = None;
    }

    /// Takes the rows x again if they were dropped.
    pub fn restore(&mut self, rows: impl FnOnce() -> Rows<B, B::Act>) {
        self.x.get_or_insert_with(rows);
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
    let bias = w.up.bias.as_deref().map(|bias| GroupBias { bias, first: 0, weights: None });
    cx.b.grouped_nt(&x.used(), &w.up.weight, bias, of, &mut up.used_mut()); // z = x Wu^T + bu, [R, D] -> [R, 2F]
    Saved { x: Some(x), weights, up, a: None }
}

/// x `[R, D]` -> y `[R, D]`.
pub fn forward<B: Backend>(
    cx: &Ctx<B>,
    w: &Weights<B>,
    x: Rows<B, B::Act>,
    weights: Rows<B, f32>,
    of: Groups<B>,
) -> (Rows<B, B::Act>, Saved<B>) {
    let hidden = x.cols();
    let saved = up(cx, w, x, weights, of);
    let a = activation(cx, &saved.up, &saved.weights); // a = p silu(g) * u, [R, 2F] -> [R, F]
    let mut y = a.alike(cx.b, hidden);
    let p = saved.weights.used();
    let bias = down_bias(cx, w, &p);
    cx.b.grouped_nt(&a.used(), &w.down.weight, bias, of, &mut y.used_mut()); // y = a Wd^T + p bd, [R, F] -> [R, D]
    drop(p);
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
    let x = x.expect("the rows were restored");
    let a = a.unwrap_or_else(|| activation(cx, &up, &weights));
    b.grouped_tn_acc(&dy.used(), &a.used(), of, &mut g.down.weight); // dWd += dy^T a
    let mut da = a;
    b.grouped_nn(&dy.used(), &w.down.weight, of, &mut da.used_mut()); // da = dy Wd, [R, D] -> [R, F]
    let mut dp = weights.alike(b, 1);
    activation_backward(cx, &da, &mut up, &weights, &mut dp);
    drop(da);
    if let (Some(bias), Some(dbias)) = (down_bias(cx, w, &weights.used()), &mut g.down.bias) {
        b.grouped_bias_bwd(&dy.used(), bias, of, dbias); // dbd += the sum of p dy
        b.grouped_bias_dot(&dy.used(), bias, of, &mut dp.used_mut()); // dp += dy . bd
    }
    b.grouped_tn_acc(&up.used(), &x.used(), of, &mut g.up.weight); // dWu += dz^T x
    if let (Some(bias), Some(dbias)) = (w.up.bias.as_deref(), &mut g.up.bias) {
        b.grouped_bias_bwd(&up.used(), GroupBias { bias, first: 0, weights: None }, of, dbias); // dbu += the sum of dz
    }
    let mut dx = dy;
    b.grouped_nn(&up.used(), &w.up.weight, of, &mut dx.used_mut()); // dx = dup Wu, [R, 2F] -> [R, D]
    (dx, dp)
}

/// The last product's bias, of which this rank adds its own columns.
fn down_bias<'a, B: Backend>(cx: &Ctx<B>, w: &'a Weights<B>, weights: &'a Acc<B>) -> Option<GroupBias<'a, B>> {
    let first = cx.hidden_start;
    w.down.bias.as_deref().map(|bias| GroupBias { bias, first, weights: Some(weights) })
}

fn activation<B: Backend>(cx: &Ctx<B>, up: &Rows<B, B::Act>, weights: &Rows<B, f32>) -> Rows<B, B::Act> {
    let mut a = up.alike(cx.b, up.cols() / 2);
    match cx.activation {
        Activation::SwiGlu => cx.b.swiglu_weighted(&up.used(), &weights.used(), &mut a.used_mut()),
        Activation::ClampedSwiGlu => cx.b.clamped_swiglu_weighted(&up.used(), &weights.used(), &mut a.used_mut()),
        Activation::GeGlu | Activation::Gelu => panic!("experts have no {:?}", cx.activation),
    }
    a
}

/// dz in place of `up`, and dp, from da.
fn activation_backward<B: Backend>(
    cx: &Ctx<B>,
    da: &Rows<B, B::Act>,
    up: &mut Rows<B, B::Act>,
    weights: &Rows<B, f32>,
    dp: &mut Rows<B, f32>,
) {
    let (da, mut up, p, mut dp) = (da.used(), up.used_mut(), weights.used(), dp.used_mut());
    match cx.activation {
        Activation::SwiGlu => cx.b.swiglu_weighted_bwd(&da, &mut up, &p, &mut dp),
        Activation::ClampedSwiGlu => cx.b.clamped_swiglu_weighted_bwd(&da, &mut up, &p, &mut dp),
        Activation::GeGlu | Activation::Gelu => panic!("experts have no {:?}", cx.activation),
    }
}
