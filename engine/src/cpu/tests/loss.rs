//! Cross-entropy, on one rank and on several, and the optimizer.

use super::reference::cross_entropy;
use super::{THREADS, acc, act, close, close_to_differences, column, differences, random, values, within};
use crate::backend::{Acc, AdamW, Backend, Rule, Xent};
use crate::cpu::{Cpu, Float};
use half::bf16;

const SHAPES: [(usize, usize); 5] = [(1, 1), (1, 130), (3, 63), (9, 1000), (6, 4097)];

fn cut_columns(x: &[f64], cols: usize, from: usize, to: usize) -> Vec<f64> {
    x.chunks(cols).flat_map(|row| row[from..to].to_vec()).collect()
}

/// cap tanh(x / cap).
fn capped(x: &[f64], cap: Option<f32>) -> Vec<f64> {
    x.iter().map(|x| cap.map_or(*x, |cap| cap as f64 * (x / cap as f64).tanh())).collect()
}

fn totals<A: Float>(b: &Cpu<A>, stats: &Acc<Cpu<A>>, weights: &[f64]) -> Vec<f64> {
    let mut totals = acc(b, &[1.0, 2.0, 3.0, 0.0, 0.0], 1);
    b.xent_totals(stats, &acc(b, weights, weights.len()), &mut totals);
    values(b, &totals)[..3].to_vec()
}

fn loss_and_gradient<A: Float>(cap: Option<f32>) {
    let loss = |first| Xent { first, z_loss: 0.01, cap };
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in SHAPES {
        let logits: Vec<f64> = random::<A>(rows * cols, 1).into_iter().map(|x| 8.0 * x).collect();
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7919 % cols) as u32).collect();
        let weights: Vec<f64> = (0..rows).map(|row| [1.0, 0.5, 0.0][row % 3]).collect();
        let ids = column(&b, &targets);
        let stats = b.xent_stats(&act(&b, &logits, rows), &ids, loss(0));
        let got = totals(&b, &stats, &weights);
        let plain = cross_entropy(&capped(&logits, cap), &targets, &weights, 0.0);
        let squares = cross_entropy(&capped(&logits, cap), &targets, &weights, 1.0) - plain;
        within("totals", &got, &[1.0 + plain, 2.0 + squares, 3.0 + weights.iter().sum::<f64>()], 1e-6, 1e-6);

        let right = differences(&logits, |x| cross_entropy(&capped(x, cap), &targets, &weights, 0.01));
        let w = acc(&b, &weights, rows);
        let whole = values(&b, &b.xent_grad(act(&b, &logits, rows), &stats, &ids, &w, loss(0)));
        close_to_differences::<A>("dlogits", &whole, &right, 2e-6);

        // Two ranks that hold a part of the vocabulary each give the same.
        let at = cols / 3;
        let parts = [(0, at), (at, cols)].map(|(from, to)| (from, cut_columns(&logits, cols, from, to)));
        let parts = parts.iter().filter(|(_, part)| !part.is_empty());
        let mut gathered = Vec::new();
        for (first, part) in parts.clone() {
            gathered.extend(values(&b, &b.xent_stats(&act(&b, part, rows), &ids, loss(*first))));
        }
        let ranks = parts.clone().count();
        let combined = b.xent_combine(&acc(&b, &gathered, ranks * rows), ranks);
        close::<f32>("combined", &values(&b, &combined), &values(&b, &stats));
        for (first, part) in parts {
            let got = values(&b, &b.xent_grad(act(&b, part, rows), &combined, &ids, &w, loss(*first)));
            close::<A>("dlogits of a rank", &got, &cut_columns(&whole, cols, *first, first + part.len() / rows));
        }
    }
}

#[test]
fn losses_in_f32() {
    loss_and_gradient::<f32>(None);
    loss_and_gradient::<f32>(Some(5.0));
}

#[test]
fn losses_in_bf16() {
    loss_and_gradient::<bf16>(None);
    loss_and_gradient::<bf16>(Some(5.0));
}

#[test]
fn tied_and_large_logits_are_stable() {
    let b = Cpu::<f32>::new(1);
    let rows = [[1000.0; 8], [-1000.0; 8], [0.0; 8]].concat();
    let ids = column(&b, &[0, 7, 3]);
    let loss = Xent { first: 0, z_loss: 0.0, cap: None };
    let stats = b.xent_stats(&act(&b, &rows, 3), &ids, loss);
    let sum = totals(&b, &stats, &[1.0; 3])[0] - 1.0;
    assert!((sum - 3.0 * 8f64.ln()).abs() < 1e-3, "{sum}");
    let w = acc(&b, &[1.0; 3], 3);
    let d = values(&b, &b.xent_grad(act(&b, &rows, 3), &stats, &ids, &w, loss));
    within("dlogits", &d[..2], &[-0.875, 0.125], 1e-3, 1e-4);
}

#[test]
fn a_row_without_weight_counts_for_nothing_whatever_its_target() {
    let b = Cpu::<f32>::new(1);
    let ids = column(&b, &[1, u32::MAX]);
    let loss = Xent { first: 0, z_loss: 0.5, cap: None };
    let stats = b.xent_stats(&act(&b, &[0.0; 8], 2), &ids, loss);
    assert_eq!(values(&b, &stats)[5], f64::NEG_INFINITY);
    let got = totals(&b, &stats, &[1.0, 0.0]);
    within("totals", &got, &[1.0 + 4f64.ln(), 2.0 + 4f64.ln().powi(2), 4.0], 1e-6, 0.0);
    let w = acc(&b, &[1.0, 0.0], 2);
    let d = values(&b, &b.xent_grad(act(&b, &[0.0; 8], 2), &stats, &ids, &w, loss));
    assert_eq!(d[4..], [0.0; 4]);
}

fn adamw<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (len, decayed) in [(1, 0), (1, 1), (100, 37), (70_000, 66_000), (140_000, 0), (140_000, 65_536)] {
        let [g, master, m] = [1, 2, 3].map(|seed| random::<f32>(len, seed));
        let v: Vec<f64> = random::<f32>(len, 4).iter().map(|v| v * v).collect();
        let v: Vec<f64> = v.into_iter().map(|v| v as f32 as f64).collect();
        let hp = AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            correction1: 1.0 - 0.9f32.powi(3),
            correction2: 1.0 - 0.95f32.powi(3),
            decayed,
        };
        let (mut new_master, mut new_m, mut new_v) = (acc(&b, &master, 1), acc(&b, &m, 1), acc(&b, &v, 1));
        let factor = acc(&b, &[9.0, 0.25, 0.0], 1);
        let [mut weights, mut right_weights] = [(); 2].map(|()| b.alloc(1, len));
        b.adamw(&acc(&b, &g, 1), &factor, &mut new_master, &mut new_m, &mut new_v, &mut weights, hp);
        b.round(&new_master, &mut right_weights);
        let (b1, b2) = (hp.beta1, hp.beta2);
        let mut right = [const { Vec::new() }; 3];
        for i in 0..len {
            let g = 0.25 * g[i];
            let (m, v) = (b1 * m[i] + (1.0 - b1) * g, b2 * v[i] + (1.0 - b2) * g * g);
            let update = m / hp.correction1 as f64 / ((v / hp.correction2 as f64).sqrt() + hp.eps as f64);
            let decay = if i < decayed { hp.weight_decay as f64 * master[i] } else { 0.0 };
            [master[i] - hp.lr as f64 * (update + decay), m, v]
                .into_iter()
                .zip(&mut right)
                .for_each(|(x, to)| to.push(x));
        }
        close::<f32>("master", &values(&b, &new_master), &right[0]);
        close::<f32>("m", &values(&b, &new_m), &right[1]);
        close::<f32>("v", &values(&b, &new_v), &right[2]);
        assert_eq!(b.download(&weights), b.download(&right_weights));
    }
}

#[test]
fn adamw_steps() {
    adamw::<f32>();
    adamw::<bf16>();
}

#[test]
fn squares_of_a_range_and_the_factor() {
    let b = Cpu::<f32>::new(THREADS);
    let g = random::<f32>(200_001, 1);
    let mut out = acc(&b, &[2.0], 1);
    b.sum_squares(&acc(&b, &g, 1), 3..200_000, &mut out);
    let right = 2.0 + g[3..200_000].iter().map(|g| g * g).sum::<f64>();
    within("sum", &values(&b, &out), &[right], 1e-6, 0.0);
    let factor = |square: f64, tokens: f64, clip: f32| {
        let rule = Rule { clip, window: 2, threshold: 6.0, skips: false };
        let (square, totals, mut state) =
            (acc(&b, &[square], 1), acc(&b, &[0.0, 0.0, tokens, 0.0, 0.0], 1), acc(&b, &[0.0; 6], 1));
        values(&b, &b.judge(&square, &totals, &mut state, rule))[..2].to_vec()
    };
    within("clipped", &factor(10_000.0, 10.0, 2.0), &[10.0, 0.02], 1e-6, 0.0);
    within("not clipped", &factor(100.0, 10.0, 2.0), &[1.0, 0.1], 1e-6, 0.0);
    within("never clipped", &factor(10_000.0, 10.0, 0.0), &[10.0, 0.1], 1e-6, 0.0);
    assert_eq!(factor(0.0, 0.0, 1.0), [0.0, 1.0]);
}
