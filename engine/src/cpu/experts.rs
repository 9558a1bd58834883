//! The ops of layers with experts, on tensors.

use super::Float;
use super::ops::experts;
use super::ops::gated::{Gate, weighted, weighted_bwd};
use super::ops::grouped::{self, rows_of};
use super::ops::matmul::{Operand, matmul_acc};
use super::ops::{bias, elementwise};
use super::rank::{Cpu, data, data_mut, expect, plain, transposed};
use crate::backend::{Acc, Act, Backend, Balance, Choices, GroupBias, Groups, Router, Sorted, Tensor, Total};
use std::ops::Range;

pub fn router_logits<A: Float>(
    b: &Cpu<A>,
    x: &Act<Cpu<A>>,
    w: &Act<Cpu<A>>,
    bias: Option<&Act<Cpu<A>>>,
) -> Acc<Cpu<A>> {
    let mut logits = b.alloc(x.rows(), w.rows());
    elementwise::zero(b.workers("router_logits"), data_mut(&mut logits));
    matmul_acc(b.workers("router_logits"), &b.pool, plain(x), transposed(w), data_mut(&mut logits));
    if let Some(bias) = bias {
        expect("bias", bias, 1, w.rows());
        bias::add_to_sums(b.workers("router_logits"), data_mut(&mut logits), data(bias));
    }
    b.made("router_logits", &logits);
    logits
}

pub fn route<A: Float>(b: &Cpu<A>, logits: &Acc<Cpu<A>>, r: Router) -> Choices<Cpu<A>> {
    let (rows, k) = (logits.rows(), r.per_token);
    assert!(k <= logits.cols(), "{k} of {} experts", logits.cols());
    let mut choices = Choices { experts: b.alloc(rows, k), weights: b.alloc(rows, k) };
    b.workers("route");
    let (chosen, weights) = (data_mut(&mut choices.experts), data_mut(&mut choices.weights));
    experts::route(data(logits), logits.cols(), r, chosen, weights);
    b.made("route", &choices.weights);
    choices
}

pub fn route_bwd<A: Float>(
    b: &Cpu<A>,
    dweights: &Acc<Cpu<A>>,
    logits: &Acc<Cpu<A>>,
    choices: &Choices<Cpu<A>>,
    r: Router,
    balance: Balance<Cpu<A>>,
    [totals, load]: [&mut Acc<Cpu<A>>; 2],
) -> Acc<Cpu<A>> {
    expect("dweights", dweights, logits.rows(), r.per_token);
    expect("totals", totals, 1, Total::COUNT);
    expect("the load", load, 1, logits.cols());
    let targets = f64::from(data(balance.targets)[0].max(1.0));
    let factors = balance.factors.map(|factor| f64::from(factor) * targets);
    let balance = experts::Balance { seq: balance.seq, factors };
    let mut dlogits = b.alloc(logits.rows(), logits.cols());
    b.workers("route_bwd");
    let (sums, chosen) = ([data_mut(totals), data_mut(load)], data(&choices.experts));
    experts::route_bwd(data(dweights), data(logits), chosen, r, balance, sums, data_mut(&mut dlogits));
    b.made("route_bwd", &dlogits);
    dlogits
}

pub fn sort<A: Float>(b: &Cpu<A>, choices: &Tensor<Cpu<A>, u32>, experts: usize) -> Sorted<Cpu<A>> {
    let (rows, k) = choices.shape();
    let mut sorted = Sorted { order: b.alloc(rows * k, 1), places: b.alloc(rows, k), counts: b.alloc(1, experts) };
    b.workers("sort_choices");
    let Sorted { order, places, counts } = &mut sorted;
    experts::sort(data(choices), data_mut(order), data_mut(places), data_mut(counts));
    sorted
}

pub fn sum_rows<A: Float>(b: &Cpu<A>, x: &Act<Cpu<A>>, places: &Tensor<Cpu<A>, u32>) -> Act<Cpu<A>> {
    assert_eq!(x.rows(), places.len(), "rows of {:?} for {} choices", x.shape(), places.len());
    let mut y = b.alloc(places.rows(), x.cols());
    experts::sum(b.workers("sum_rows"), data(x), data(places), x.cols(), data_mut(&mut y));
    b.made("sum_rows", &y);
    y
}

/// A product of x `[R, K]` with the weights `[E N, K]`, transposed by `turn`, of each row's expert.
pub fn grouped<A: Float>(
    b: &Cpu<A>,
    op: &'static str,
    [x, w]: [&Act<Cpu<A>>; 2],
    turn: impl for<'w> Fn(Operand<'w, A>) -> Operand<'w, A>,
    bias: Option<GroupBias<Cpu<A>>>,
    g: Groups<Cpu<A>>,
    y: &mut Act<Cpu<A>>,
) {
    let (each, width) = (w.rows() / g.counts.len(), w.cols());
    let weights = |e: usize| turn(Operand::new(&data(w)[e * each * width..(e + 1) * each * width], each, width));
    let shape = [y.cols(), x.cols()];
    let bias = bias.map(|bias| bias_of(&bias, &g, x.rows(), y.cols()));
    grouped::grouped(b.workers(op), &b.pool, data(x), rows(&g, x.rows()), weights, bias, shape, data_mut(y));
    b.made(op, y);
}

/// The bias of `rows` rows of `width` columns.
fn bias_of<'a, A: Float>(
    of: &GroupBias<'a, Cpu<A>>,
    g: &Groups<Cpu<A>>,
    rows: usize,
    width: usize,
) -> grouped::Bias<'a, A> {
    let columns = of.columns(g.counts.len(), width);
    of.weights.iter().for_each(|weights| expect("weights", weights, rows, 1));
    grouped::Bias { bias: data(of.bias), first: of.first, width: columns.len(), weights: of.weights.map(data) }
}

pub fn grouped_bias_bwd<A: Float>(
    b: &Cpu<A>,
    dy: &Act<Cpu<A>>,
    bias: GroupBias<Cpu<A>>,
    g: Groups<Cpu<A>>,
    dbias: &mut Acc<Cpu<A>>,
) {
    expect("dbias", dbias, 1, bias.bias.len());
    let bias = bias_of(&bias, &g, dy.rows(), dy.cols());
    let workers = b.workers("grouped_bias_bwd");
    grouped::bias_bwd(workers, data(dy), rows(&g, dy.rows()), bias, dy.cols(), data_mut(dbias));
    b.made("grouped_bias_bwd", dbias);
}

pub fn grouped_bias_dot<A: Float>(
    b: &Cpu<A>,
    dy: &Act<Cpu<A>>,
    bias: GroupBias<Cpu<A>>,
    g: Groups<Cpu<A>>,
    dweights: &mut Acc<Cpu<A>>,
) {
    expect("dweights", dweights, dy.rows(), 1);
    let bias = bias_of(&bias, &g, dy.rows(), dy.cols());
    let workers = b.workers("grouped_bias_dot");
    grouped::bias_dot(workers, data(dy), rows(&g, dy.rows()), bias, dy.cols(), data_mut(dweights));
    b.made("grouped_bias_dot", dweights);
}

pub fn grouped_tn_acc<A: Float>(
    b: &Cpu<A>,
    dy: &Act<Cpu<A>>,
    x: &Act<Cpu<A>>,
    g: Groups<Cpu<A>>,
    dw: &mut Acc<Cpu<A>>,
) {
    let (shape, workers) = ([dy.cols(), x.cols()], b.workers("grouped_tn_acc"));
    expect("dw", dw, g.counts.len() * dy.cols(), x.cols());
    grouped::grouped_acc(workers, &b.pool, data(dy), data(x), rows(&g, x.rows()), shape, data_mut(dw));
    b.made("grouped_tn_acc", dw);
}

fn rows<'a, A: Float>(g: &Groups<'a, Cpu<A>>, rows: usize) -> impl Iterator<Item = (usize, Range<usize>)> + 'a {
    rows_of(data(g.counts), g.first, rows)
}

/// `G` is the gate of the op.
pub fn gated_weighted<A: Float, G: Gate>(
    b: &Cpu<A>,
    op: &'static str,
    gate_up: &Act<Cpu<A>>,
    weights: &Acc<Cpu<A>>,
    y: &mut Act<Cpu<A>>,
) {
    expect("weights", weights, gate_up.rows(), 1);
    expect("y", y, gate_up.rows(), gate_up.cols() / 2);
    let (f, workers) = (y.cols(), b.workers(op));
    weighted::<A, G>(workers, data(gate_up), data(weights), f, data_mut(y));
    b.made(op, y);
}

pub fn gated_weighted_bwd<A: Float, G: Gate>(
    b: &Cpu<A>,
    op: &'static str,
    dy: &Act<Cpu<A>>,
    gate_up: &mut Act<Cpu<A>>,
    weights: &Acc<Cpu<A>>,
    dweights: &mut Acc<Cpu<A>>,
) {
    expect("weights", weights, dy.rows(), 1);
    expect("[gate | up]", gate_up, dy.rows(), 2 * dy.cols());
    let (workers, f) = (b.workers(op), dy.cols());
    weighted_bwd::<A, G>(workers, data(dy), data(weights), f, data_mut(gate_up), data_mut(dweights));
    b.made(op, gate_up);
    b.made(op, dweights);
}
