//! The ops of layers with experts.

use super::Cuda;
use super::calls::view;
use crate::blas::Form;
use crate::machine::{Done, Machine};
use crate::ops;
use crate::tensor::View;
use engine::backend::{Acc, Act, Backend, Balance, Choices, Elem, GroupBias, Groups, Router, Sorted, Tensor};

/// The product is cuBLASLt's, with sums that are not rounded.
pub(super) fn router_logits(b: &Cuda, x: &Act<Cuda>, w: &Act<Cuda>, bias: Option<&Act<Cuda>>) -> Acc<Cuda> {
    let logits = b.alloc(x.rows(), w.rows());
    b.product(Form::NtF32, x, w, &logits);
    if let Some(bias) = bias {
        b.note(ops::add_bias_f32(b.machine(), view(&logits), view(bias)));
    }
    b.made("router_logits", &logits);
    logits
}

pub(super) fn route(b: &Cuda, logits: &Acc<Cuda>, r: Router) -> Choices<Cuda> {
    let (rows, k) = (logits.rows(), r.per_token);
    let choices = Choices { experts: b.alloc(rows, k), weights: b.alloc(rows, k) };
    b.note(ops::route(b.machine(), view(logits), r, view(&choices.experts), view(&choices.weights)));
    b.made("route", &choices.weights);
    choices
}

pub(super) fn route_bwd(
    b: &Cuda,
    dweights: &Acc<Cuda>,
    logits: &Acc<Cuda>,
    choices: &Choices<Cuda>,
    r: Router,
    balance: Balance<Cuda>,
    [totals, load]: [&mut Acc<Cuda>; 2],
) -> Acc<Cuda> {
    let dlogits = b.alloc(logits.rows(), logits.cols());
    let scratch = b.scratch_of::<f32>(ops::route_parts(logits.rows(), logits.cols()));
    let Balance { seq, factors, targets } = balance;
    let (chosen, targets) = (view(&choices.experts), view(targets));
    let routed = ops::Routed { dweights: view(dweights), logits: view(logits), chosen, targets, seq, factors };
    let sums = [view(totals), view(load)];
    b.note(ops::route_bwd(b.machine(), routed, r, sums, view(&scratch), view(&dlogits)));
    b.made("route_bwd", &dlogits);
    dlogits
}

pub(super) fn sort_choices(b: &Cuda, choices: &Tensor<Cuda, u32>, experts: usize) -> Sorted<Cuda> {
    let (rows, k) = choices.shape();
    let sorted = Sorted { order: b.alloc(rows * k, 1), places: b.alloc(rows, k), counts: b.alloc(1, experts) };
    let [order, places, counts] = [&sorted.order, &sorted.places, &sorted.counts].map(view);
    b.note(ops::sort_choices(b.machine(), view(choices), order, places, counts));
    sorted
}

pub(super) fn take_rows<T: Elem>(
    b: &Cuda,
    x: &Tensor<Cuda, T>,
    index: &Tensor<Cuda, u32>,
    per: usize,
    y: &mut Tensor<Cuda, T>,
) {
    assert_eq!(y.shape(), (index.len(), x.cols()), "rows of {:?}", x.shape());
    b.note(ops::take_rows::<T>(b.machine(), view(x), view(index), per, view(y), x.cols()));
}

pub(super) fn sum_rows(b: &Cuda, x: &Act<Cuda>, places: &Tensor<Cuda, u32>) -> Act<Cuda> {
    assert_eq!(x.rows(), places.len(), "rows of {:?} for {} choices", x.shape(), places.len());
    let y = b.alloc(places.rows(), x.cols());
    b.note(ops::sum_choices(b.machine(), view(x), view(places), view(&y), x.cols()));
    b.made("sum_rows", &y);
    y
}

pub(super) fn grouped_nt(
    b: &Cuda,
    x: &Act<Cuda>,
    w: &Act<Cuda>,
    bias: Option<GroupBias<Cuda>>,
    g: Groups<Cuda>,
    y: &mut Act<Cuda>,
) {
    assert_eq!(w.shape(), (g.counts.len() * y.cols(), x.cols()), "weights for {:?}", x.shape());
    let bias = bias.map_or(ops::GroupBias::NONE, |bias| bias_of(bias, g));
    b.note(ops::grouped_nt(b.machine(), view(x), view(w), bias, groups(g), view(y), x.rows()));
    b.made("grouped_nt", y);
}

pub(super) fn grouped_nn(b: &Cuda, x: &Act<Cuda>, w: &Act<Cuda>, g: Groups<Cuda>, y: &mut Act<Cuda>) {
    assert_eq!(w.shape(), (g.counts.len() * x.cols(), y.cols()), "weights for {:?}", x.shape());
    b.note(ops::grouped_nn(b.machine(), view(x), view(w), groups(g), view(y), x.rows()));
    b.made("grouped_nn", y);
}

pub(super) fn grouped_tn_acc(b: &Cuda, dy: &Act<Cuda>, x: &Act<Cuda>, g: Groups<Cuda>, dw: &mut Acc<Cuda>) {
    assert_eq!(dw.shape(), (g.counts.len() * dy.cols(), x.cols()), "gradients for {:?}", x.shape());
    b.note(ops::grouped_tn_acc(b.machine(), view(dy), view(x), groups(g), view(dw), x.rows()));
    b.made("grouped_tn_acc", dw);
}

pub(super) fn grouped_bias_bwd(
    b: &Cuda,
    dy: &Act<Cuda>,
    bias: GroupBias<Cuda>,
    g: Groups<Cuda>,
    dbias: &mut Acc<Cuda>,
) {
    let of = bias_of(bias, g);
    b.note(ops::grouped_bias_bwd(b.machine(), view(dy), of, groups(g), view(dbias), dy.rows()));
    b.made("grouped_bias_bwd", dbias);
}

pub(super) fn grouped_bias_dot(
    b: &Cuda,
    dy: &Act<Cuda>,
    bias: GroupBias<Cuda>,
    g: Groups<Cuda>,
    dweights: &mut Acc<Cuda>,
) {
    assert_eq!(dweights.shape(), (dy.rows(), 1), "gradients of weights");
    b.note(ops::grouped_bias_dot(b.machine(), view(dy), bias_of(bias, g), groups(g), view(dweights)));
    b.made("grouped_bias_dot", dweights);
}

fn bias_of(bias: GroupBias<Cuda>, g: Groups<Cuda>) -> ops::GroupBias {
    let weights = bias.weights.map_or(View::NONE, view);
    ops::GroupBias::new(view(bias.bias), weights, bias.first, g.counts.len())
}

fn groups(g: Groups<Cuda>) -> ops::Groups {
    ops::Groups { counts: view(g.counts), first: g.first }
}

/// `run` is the op of a gate.
pub(super) fn gated_weighted(
    b: &Cuda,
    op: &'static str,
    run: fn(&dyn Machine, View, View, View, usize) -> Done,
    gate_up: &Act<Cuda>,
    weights: &Acc<Cuda>,
    y: &mut Act<Cuda>,
) {
    b.note(run(b.machine(), view(gate_up), view(weights), view(y), y.cols()));
    b.made(op, y);
}

/// `run` is the op of a gate's gradients.
pub(super) fn gated_weighted_bwd(
    b: &Cuda,
    op: &'static str,
    run: fn(&dyn Machine, View, View, [View; 2], usize) -> Done,
    dy: &Act<Cuda>,
    gate_up: &mut Act<Cuda>,
    [weights, dweights]: [&Acc<Cuda>; 2],
) {
    b.note(run(b.machine(), view(dy), view(gate_up), [view(weights), view(dweights)], dy.cols()));
    b.made(op, gate_up);
    b.made(op, dweights);
}
