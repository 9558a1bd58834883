//! The ops of layers with experts.

use super::{acc, act, close, close_to_differences, column, differences, dot, random, reference, values, within};
use crate::backend::{Acc, Act, Backend, Balance, GroupBias, Groups, Router, Total};
use crate::config::RouterWeights;
use crate::cpu::ops::grouped::rows_of;
use crate::cpu::{Cpu, Float};
use half::bf16;

const BOTH: [RouterWeights; 2] = [RouterWeights::OfAll, RouterWeights::OfChosen];

fn softmax(x: &[f64]) -> Vec<f64> {
    let sum: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / sum).collect()
}

/// The weights of the chosen experts of one token.
fn weights(logits: &[f64], chosen: &[u32], of: RouterWeights) -> Vec<f64> {
    let p = softmax(logits);
    let own: Vec<f64> = chosen.iter().map(|&e| p[e as usize]).collect();
    let all = if of == RouterWeights::OfAll { 1.0 } else { own.iter().sum() };
    own.iter().map(|p| p / all).collect()
}

/// The sums over sequences of `E sum_e (n_e / S) P_e` and over tokens of log(sum exp)^2.
fn auxiliary(logits: &[f64], chosen: &[u32], experts: usize, seq: usize) -> [f64; 2] {
    let k = chosen.len() * experts / logits.len();
    let of_sequence = |(logits, chosen): (&[f64], &[u32])| -> f64 {
        let p: Vec<f64> = logits.chunks(experts).flat_map(softmax).collect();
        let each = |e: usize| {
            let n = chosen.iter().filter(|&&c| c as usize == e).count() as f64;
            n / seq as f64 * p.iter().skip(e).step_by(experts).sum::<f64>() / seq as f64
        };
        experts as f64 * (0..experts).map(each).sum::<f64>()
    };
    let z = |logits: &[f64]| logits.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2);
    let sequences = logits.chunks(seq * experts).zip(chosen.chunks(seq * k));
    [sequences.map(of_sequence).sum(), logits.chunks(experts).map(z).sum()]
}

#[test]
fn the_largest_logits_are_chosen_and_ties_go_to_the_first() {
    let b = Cpu::<f32>::new(1);
    let nan = f64::NAN;
    let logits = [[1.0, 3.0, 3.0, 2.0], [0.0; 4], [nan, -1.0, nan, -2.0], [nan; 4]].concat();
    let router = |per_token| Router { per_token, weights: RouterWeights::OfChosen };
    let chosen = |k| b.download(&b.route(&acc(&b, &logits, 4), router(k)).experts);
    assert_eq!(chosen(1), [1, 0, 1, 0]);
    assert_eq!(chosen(3), [1, 2, 3, 0, 1, 2, 1, 3, 0, 0, 1, 2]);
    let weights = values(&b, &b.route(&acc(&b, &logits[..8], 2), router(2)).weights);
    within("weights", &weights, &[0.5; 4], 0.0, 1e-6);
    let all = Router { per_token: 4, weights: RouterWeights::OfAll };
    let sums = values(&b, &b.route(&acc(&b, &logits[..8], 2), all).weights);
    assert!(sums.chunks(4).all(|row| (row.iter().sum::<f64>() - 1.0).abs() < 1e-6));
}

#[test]
fn gradients_of_routers_and_their_losses() {
    let b = Cpu::<f32>::new(1);
    for (seq, sequences, experts, k) in [(1, 1, 2, 1), (5, 3, 4, 2), (7, 2, 9, 9), (4, 2, 1, 1)] {
        for of in BOTH {
            let (rows, r) = (seq * sequences, Router { per_token: k, weights: of });
            let logits = random::<f32>(rows * experts, 3).iter().map(|x| 3.0 * x).collect::<Vec<_>>();
            let dweights = random::<f32>(rows * k, 4);
            let choices = b.route(&acc(&b, &logits, rows), r);
            let chosen = b.download(&choices.experts);
            let all = |logits: &[f64]| -> Vec<f64> {
                let tokens = logits.chunks(experts).zip(chosen.chunks(k));
                tokens.flat_map(|(logits, chosen)| weights(logits, chosen, of)).collect()
            };
            within("weights", &values(&b, &choices.weights), &all(&logits), 1e-6, 1e-6);
            // 6 counted targets.
            let loss = |logits: &[f64]| {
                let [aux, z] = auxiliary(logits, &chosen, experts, seq);
                dot(&all(logits), &dweights) + 6.0 * (0.25 * aux + 0.125 * z)
            };
            let balance = Balance { seq, factors: [0.25, 0.125], targets: &acc(&b, &[6.0], 1) };
            let (mut totals, mut load) = (acc(&b, &[1.0; Total::COUNT], 1), acc(&b, &vec![2.0; experts], 1));
            let dw = acc(&b, &dweights, rows);
            let sums = [&mut totals, &mut load];
            let got = b.route_bwd(&dw, &acc(&b, &logits, rows), &choices, r, balance, sums);
            close_to_differences::<f32>("dlogits", &values(&b, &got), &differences(&logits, loss), 1e-4);
            let [aux, z] = auxiliary(&logits, &chosen, experts, seq);
            within("totals", &values(&b, &totals), &[1.0, 1.0, 1.0, 1.0 + aux, 1.0 + z], 1e-6, 0.0);
            let count = |e: usize| 2.0 + chosen.iter().filter(|&&c| c as usize == e).count() as f64;
            assert_eq!(values(&b, &load), (0..experts).map(count).collect::<Vec<_>>());
        }
    }
}

#[test]
fn choices_are_sorted_by_expert_and_summed_by_token() {
    let b = Cpu::<f32>::new(2);
    let (chosen, k, experts) = ([2u32, 0, 0, 3, 2, 0, 3, 2], 2, 5);
    let sorted = b.sort_choices(&b.upload(&chosen, 4, k), experts);
    assert_eq!(b.download(&sorted.order), [1, 2, 5, 0, 4, 7, 3, 6]);
    assert_eq!(b.download(&sorted.places), [3, 0, 1, 6, 4, 2, 7, 5]);
    assert_eq!(b.download(&sorted.counts), [3, 0, 3, 2, 0]);
    let x = random::<f32>(4 * 3, 1);
    let mut rows = b.alloc(8, 3);
    b.take_rows(&act(&b, &x, 4), &sorted.order, k, &mut rows);
    let taken: Vec<f64> = [1, 2, 5, 0, 4, 7, 3, 6].iter().flat_map(|c| x[c / k * 3..][..3].to_vec()).collect();
    assert_eq!(values(&b, &rows), taken);
    // Each token gets its own row twice.
    let twice: Vec<f64> = x.iter().map(|x| 2.0 * x).collect();
    within("sums", &values(&b, &b.sum_rows(&rows, &sorted.places)), &twice, 1e-6, 0.0);
    b.take_rows(&act(&b, &x, 4), &column(&b, &[]), 1, &mut b.alloc(0, 3));
}

#[test]
fn grouped_products() {
    products::<f32>();
    products::<bf16>();
}

fn products<A: Float>() {
    let b = Cpu::<A>::new(2);
    // Experts without rows, and rows from the middle of the sorted ones.
    for (counts, first, rows, n, k) in [
        (vec![3u32, 0, 5, 1], 0, 9, 6, 4),
        (vec![0, 7, 0], 2, 5, 3, 5),
        (vec![0, 0], 0, 0, 2, 2),
        (vec![4, 400], 3, 300, 33, 65),
    ] {
        let experts = counts.len();
        let counts_here = b.upload(&counts, 1, experts);
        let g = Groups { counts: &counts_here, first };
        let (x, dy, w) = (random::<A>(rows * k, 1), random::<A>(rows * n, 2), random::<A>(experts * n * k, 3));
        let (xs, dys, ws) = (act_of(&b, &x, rows, k), act_of(&b, &dy, rows, n), act(&b, &w, experts * n));
        let (mut y, mut dx) = (b.alloc(rows, n), b.alloc(rows, k));
        b.grouped_nt(&xs, &ws, None, g, &mut y);
        b.grouped_nn(&dys, &ws, g, &mut dx);
        let mut dw = acc(&b, &vec![1.0; experts * n * k], experts * n);
        b.grouped_tn_acc(&dys, &xs, g, &mut dw);
        let (y, dx, dw) = (values(&b, &y), values(&b, &dx), values(&b, &dw));
        let mut untouched = vec![true; experts];
        for (e, rows) in rows_of(&counts, first, rows) {
            untouched[e] = false;
            let (x, dy) = (&x[rows.start * k..rows.end * k], &dy[rows.start * n..rows.end * n]);
            let w = &w[e * n * k..(e + 1) * n * k];
            let m = rows.len();
            close::<A>("y", &y[rows.start * n..rows.end * n], &reference::matmul(x, &reference::transpose(w, n), m, n));
            close::<A>("dx", &dx[rows.start * k..rows.end * k], &reference::matmul(dy, w, m, k));
            let of_expert = reference::matmul(&reference::transpose(dy, m), x, n, k);
            let sums: Vec<f64> = of_expert.iter().map(|x| 1.0 + x).collect();
            close::<f32>("dw", &dw[e * n * k..(e + 1) * n * k], &sums);
        }
        let nothing = |(e, _): (usize, &bool)| dw[e * n * k..(e + 1) * n * k].iter().all(|&x| x == 1.0);
        assert!(untouched.iter().enumerate().filter(|(_, untouched)| **untouched).all(nothing));
    }
}

/// Biases of all columns and of some, with weights of rows and without, of products of one step and of several.
#[test]
fn biases_of_experts() {
    biases::<f32>();
    biases::<bf16>();
}

fn biases<A: Float>() {
    let b = Cpu::<A>::new(2);
    let counts = [4u32, 0, 90, 1, 3];
    let (experts, first, rows) = (counts.len(), 2, 95);
    for (n, k, columns, weighted) in [(6, 4, 0..6, false), (33, 65, 5..20, true), (9, 4100, 8..9, true)] {
        let counts_here = b.upload(&counts, 1, experts);
        let (g, width) = (Groups { counts: &counts_here, first }, columns.len());
        let (x, w) = (random::<A>(rows * k, 1), random::<A>(experts * n * k, 2));
        let (dy, bias) = (random::<A>(rows * n, 3), random::<A>(experts * width, 4));
        let weights = if weighted { random::<f32>(rows, 5) } else { vec![1.0; rows] };
        let (bias_here, weights_here) = (act(&b, &bias, 1), acc(&b, &weights, rows));
        let of = GroupBias { bias: &bias_here, first: columns.start, weights: weighted.then_some(&weights_here) };

        let (mut y, mut dbias) = (b.alloc(rows, n), acc(&b, &vec![1.0; experts * width], 1));
        b.grouped_nt(&act(&b, &x, rows), &act(&b, &w, experts * n), Some(of), g, &mut y);
        let (dys, mut dweights) = (act(&b, &dy, rows), acc(&b, &vec![1.0; rows], rows));
        b.grouped_bias_bwd(&dys, of, g, &mut dbias);
        b.grouped_bias_dot(&dys, of, g, &mut dweights);

        let [mut by_bias, mut by_weight] = [vec![1.0; experts * width], vec![1.0; rows]];
        let mut right = vec![0.0; rows * n];
        for (e, of_expert) in rows_of(&counts, first, rows) {
            let w = reference::transpose(&w[e * n * k..(e + 1) * n * k], n);
            for row in of_expert {
                right[row * n..][..n].copy_from_slice(&reference::matmul(&x[row * k..][..k], &w, 1, n));
                for (i, column) in columns.clone().enumerate() {
                    right[row * n + column] += weights[row] * bias[e * width + i];
                    by_bias[e * width + i] += weights[row] * dy[row * n + column];
                    by_weight[row] += bias[e * width + i] * dy[row * n + column];
                }
            }
        }
        close::<A>("y", &values(&b, &y), &right);
        close::<f32>("dbias", &values(&b, &dbias), &by_bias);
        close::<f32>("dweights", &values(&b, &dweights), &by_weight);
    }
}

/// A matrix, which may have no rows.
fn act_of<A: Float>(b: &Cpu<A>, x: &[f64], rows: usize, cols: usize) -> Act<Cpu<A>> {
    if rows == 0 { b.alloc(0, cols) } else { act(b, x, rows) }
}

#[test]
fn weighted_swiglu() {
    weighted::<f32, _>(SwiGlu, reference::swiglu);
    weighted::<bf16, _>(SwiGlu, reference::swiglu);
}

#[test]
fn weighted_swiglu_with_clamps() {
    weighted::<f32, _>(Clamped, clamped);
    weighted::<bf16, _>(Clamped, clamped);
    // At a clamp the gradient is still there, beyond it there is none; a number that is none is not clamped away.
    let b = Cpu::<f32>::new(1);
    let [gates, ups] = [[7.0, 7.5, -90.0, 1.0, 1.0, f64::NAN], [1.0, 1.0, 1.0, -7.0, 7.5, 1.0]];
    let (mut gate_up, ones) = (act(&b, &[gates, ups].concat(), 1), acc(&b, &[1.0], 1));
    let mut y = b.alloc(1, 6);
    b.clamped_swiglu_weighted(&gate_up, &ones, &mut y);
    let y = values(&b, &y);
    assert!(y[..5].iter().all(|y| y.is_finite()) && y[5].is_nan() && y[0] == y[1], "{y:?}");
    b.clamped_swiglu_weighted_bwd(&act(&b, &[1.0; 6], 1), &mut gate_up, &ones, &mut acc(&b, &[0.0], 1));
    let zero: Vec<bool> = values(&b, &gate_up).iter().map(|d| *d == 0.0).collect();
    let (of_gate, of_up) = zero.split_at(6);
    assert_eq!((&of_gate[..2], &of_up[3..5]), (&[false, true][..], &[false, true][..]));
}

fn clamped(gate_up: &[f64], f: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let each = |(gate, up): (&f64, &f64)| {
            let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
            (up + 1.0) * gate / (1.0 + (-1.702 * gate).exp())
        };
        row[..f].iter().zip(&row[f..]).map(each).collect()
    };
    gate_up.chunks(2 * f).flat_map(row).collect()
}

/// An op with weights of rows, and its backward.
trait Weighted<A: Float> {
    fn forward(&self, b: &Cpu<A>, gate_up: &Act<Cpu<A>>, weights: &Acc<Cpu<A>>, y: &mut Act<Cpu<A>>);
    fn backward(&self, b: &Cpu<A>, dy: &Act<Cpu<A>>, gate_up: &mut Act<Cpu<A>>, weights: [&mut Acc<Cpu<A>>; 2]);
}

struct SwiGlu;
struct Clamped;

impl<A: Float> Weighted<A> for SwiGlu {
    fn forward(&self, b: &Cpu<A>, gate_up: &Act<Cpu<A>>, weights: &Acc<Cpu<A>>, y: &mut Act<Cpu<A>>) {
        b.swiglu_weighted(gate_up, weights, y);
    }
    fn backward(&self, b: &Cpu<A>, dy: &Act<Cpu<A>>, gate_up: &mut Act<Cpu<A>>, [w, dw]: [&mut Acc<Cpu<A>>; 2]) {
        b.swiglu_weighted_bwd(dy, gate_up, w, dw);
    }
}

impl<A: Float> Weighted<A> for Clamped {
    fn forward(&self, b: &Cpu<A>, gate_up: &Act<Cpu<A>>, weights: &Acc<Cpu<A>>, y: &mut Act<Cpu<A>>) {
        b.clamped_swiglu_weighted(gate_up, weights, y);
    }
    fn backward(&self, b: &Cpu<A>, dy: &Act<Cpu<A>>, gate_up: &mut Act<Cpu<A>>, [w, dw]: [&mut Acc<Cpu<A>>; 2]) {
        b.clamped_swiglu_weighted_bwd(dy, gate_up, w, dw);
    }
}

/// Gates and values up to 9, so that some are beyond the clamps.
fn weighted<A: Float, W: Weighted<A>>(op: W, exact: impl Fn(&[f64], usize) -> Vec<f64>) {
    let b = Cpu::<A>::new(2);
    for (rows, f, scale) in [(1, 1, 1.0), (5, 17, 1.0), (40, 64, 1.0), (9, 33, 9.0)] {
        let gate_up: Vec<f64> = random::<A>(rows * 2 * f, 1).iter().map(|x| scale * x).collect();
        let gate_up: Vec<f64> = gate_up.iter().map(|&x| A::store(x as f32).load() as f64).collect();
        let (dy, w) = (random::<A>(rows * f, 2), random::<f32>(rows, 3));
        let forward = |gate_up: &[f64], w: &[f64]| -> Vec<f64> {
            exact(gate_up, f).iter().enumerate().map(|(at, y)| w[at / f] * y).collect()
        };
        let (mut y, mut ws) = (b.alloc(rows, f), acc(&b, &w, rows));
        op.forward(&b, &act(&b, &gate_up, rows), &ws, &mut y);
        close::<A>("y", &values(&b, &y), &forward(&gate_up, &w));
        let (mut dgate_up, mut dw) = (act(&b, &gate_up, rows), acc(&b, &vec![0.0; rows], rows));
        op.backward(&b, &act(&b, &dy, rows), &mut dgate_up, [&mut ws, &mut dw]);
        let by_input = differences(&gate_up, |x| dot(&forward(x, &w), &dy));
        close_to_differences::<A>("dgate_up", &values(&b, &dgate_up), &by_input, 1e-4);
        let by_weight = differences(&w, |w| dot(&forward(&gate_up, w), &dy));
        close_to_differences::<f32>("dweights", &values(&b, &dw), &by_weight, 1e-4);
    }
}

#[test]
fn logits_of_routers_are_not_rounded() {
    let b = Cpu::<bf16>::new(1);
    let (x, w, bias) = (random::<bf16>(5 * 33, 1), random::<bf16>(7 * 33, 2), random::<bf16>(7, 3));
    let right = reference::matmul(&x, &reference::transpose(&w, 7), 5, 7);
    let right: Vec<f64> = right.iter().enumerate().map(|(at, y)| y + bias[at % 7]).collect();
    let got = b.router_logits(&act(&b, &x, 5), &act(&b, &w, 7), Some(&act(&b, &bias, 1)));
    close::<f32>("logits", &values(&b, &got), &right);
}
