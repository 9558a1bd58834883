//! The times of the ops of layers with experts. Grouped products are logged as one product with the mean rows of an
//! expert and the weights of all of them (`Operands::sizes`), and so they are measured.

use super::ops::Bench;
use engine::backend::{Acc, Backend, Balance, GroupBias, Groups, Op, Router, Tensor, Total};
use engine::config::RouterWeights;
use engine::cpu::{Cpu, Float};

/// Experts of a token.
const PER_TOKEN: usize = 2;

fn router(experts: usize) -> Router {
    Router { per_token: PER_TOKEN.min(experts), weights: RouterWeights::OfChosen }
}

/// Numbers below `below` for each of so many elements.
fn spread<A: Float>(b: &Cpu<A>, rows: usize, cols: usize, below: usize) -> Tensor<Cpu<A>, u32> {
    let all: Vec<u32> = (0..rows * cols).map(|i| (i * 7919 % below) as u32).collect();
    b.upload(&all, rows, cols)
}

pub fn once<A: Float>(t: &Bench<A>, op: Op, [rows, cols, depth]: [usize; 3]) -> f64 {
    let b = t.b;
    let one = |rows: usize| b.upload(&[rows as u32], 1, 1);
    match op {
        Op::GroupedNt => {
            let (x, w, counts, mut y) = (t.act(rows, depth), t.act(cols, depth), one(rows), t.own(rows, cols));
            t.timed(|b| b.grouped_nt(&x, &w, None, Groups { counts: &counts, first: 0 }, &mut y))
        }
        Op::GroupedNn => {
            let (x, w, counts, mut y) = (t.act(rows, depth), t.act(depth, cols), one(rows), t.own(rows, cols));
            t.timed(|b| b.grouped_nn(&x, &w, Groups { counts: &counts, first: 0 }, &mut y))
        }
        Op::GroupedTnAcc => {
            let (dy, x, counts) = (t.act(depth, rows), t.act(depth, cols), one(depth));
            t.adding(rows, cols, |b, dw| b.grouped_tn_acc(&dy, &x, Groups { counts: &counts, first: 0 }, dw))
        }
        Op::GroupedBiasBwd | Op::GroupedBiasDot => bias_bwd(t, op, rows, cols),
        Op::RouterLogits => {
            let (x, w) = (t.act(rows, depth), t.act(cols, depth));
            t.timed(|b| b.router_logits(&x, &w, None))
        }
        Op::Route => {
            let logits = t.numbers(rows, cols);
            t.timed(|b| b.route(&logits, router(cols)))
        }
        Op::RouteBwd => route_bwd(t, rows, cols),
        Op::SortChoices => {
            let choices = spread(b, rows, cols, 8);
            t.timed(|b| b.sort_choices(&choices, 8))
        }
        Op::TakeRows => {
            let (x, index, mut y) = (t.act(rows, cols), spread(b, rows, 1, rows), t.own(rows, cols));
            t.timed(|b| b.take_rows(&x, &index, 1, &mut y))
        }
        Op::SumRows => {
            let (x, places) = (t.act(rows, cols), spread(b, rows, 1, rows));
            t.timed(|b| b.sum_rows(&x, &places))
        }
        Op::SwigluWeighted => {
            let (x, weights, mut y) = (t.act(rows, cols), t.numbers(rows, 1), t.own(rows, cols / 2));
            t.timed(|b| b.swiglu_weighted(&x, &weights, &mut y))
        }
        Op::SwigluWeightedBwd => {
            let (dy, mut x, weights) = (t.act(rows, cols / 2), t.own(rows, cols), t.numbers(rows, 1));
            let mut dweights: Acc<Cpu<A>> = b.alloc(rows, 1);
            t.timed(|b| b.swiglu_weighted_bwd(&dy, &mut x, &weights, &mut dweights))
        }
        Op::ClampedSwigluWeighted => {
            let (x, weights, mut y) = (t.act(rows, cols), t.numbers(rows, 1), t.own(rows, cols / 2));
            t.timed(|b| b.clamped_swiglu_weighted(&x, &weights, &mut y))
        }
        Op::ClampedSwigluWeightedBwd => {
            let (dy, mut x, weights) = (t.act(rows, cols / 2), t.own(rows, cols), t.numbers(rows, 1));
            let mut dweights: Acc<Cpu<A>> = b.alloc(rows, 1);
            t.timed(|b| b.clamped_swiglu_weighted_bwd(&dy, &mut x, &weights, &mut dweights))
        }
        _ => panic!("{} is no op of experts", op.name()),
    }
}

/// The gradient of a bias of one expert, or of its weights.
fn bias_bwd<A: Float>(t: &Bench<A>, op: Op, rows: usize, cols: usize) -> f64 {
    let (dy, bias, weights) = (t.act(rows, cols), t.act(1, cols), t.numbers(rows, 1));
    let counts = t.b.upload(&[rows as u32], 1, 1);
    let (g, bias) =
        (Groups { counts: &counts, first: 0 }, GroupBias { bias: &bias, first: 0, weights: Some(&weights) });
    match op {
        Op::GroupedBiasBwd => t.adding(1, cols, |b, dbias| b.grouped_bias_bwd(&dy, bias, g, dbias)),
        _ => t.adding(rows, 1, |b, dweights| b.grouped_bias_dot(&dy, bias, g, dweights)),
    }
}

fn route_bwd<A: Float>(t: &Bench<A>, rows: usize, experts: usize) -> f64 {
    let (b, r) = (t.b, router(experts));
    let (logits, dweights) = (t.numbers(rows, experts), t.numbers(rows, r.per_token));
    let (choices, targets) = (b.route(&logits, r), b.upload(&[1.0f32], 1, 1));
    let (mut totals, mut load): (Acc<Cpu<A>>, Acc<Cpu<A>>) = (b.alloc(1, Total::COUNT), b.alloc(1, experts));
    let balance = Balance { seq: rows, factors: [0.0; 2], targets: &targets };
    t.timed(|b| b.route_bwd(&dweights, &logits, &choices, r, balance, [&mut totals, &mut load]))
}
