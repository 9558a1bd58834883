//! RMSNorm, LayerNorm and their backwards.

use super::reference::{layernorm, rmsnorm};
use super::{THREADS, acc, act, close, close_to_differences, differences, dot, random, values};
use crate::backend::{Backend, LayerNorm, Rms};
use crate::cpu::{Cpu, Float};
use half::bf16;

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 7), (3, 64), (70, 33), (130, 288), (2, 1000)];
const EPS: f32 = 1e-5;

fn forward<A: Float>(offset: f32) {
    let plus = |w: &[f64]| -> Vec<f64> { w.iter().map(|w| w + offset as f64).collect() };
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in SHAPES {
        let (x, r, w) = (random::<A>(rows * cols, 1), random::<A>(rows * cols, 2), random::<A>(cols, 3));
        let weight = act(&b, &w, 1);
        let rms = Rms { w: &weight, eps: EPS, offset };
        let (y, rstd) = b.rmsnorm(&act(&b, &x, rows), rms);
        let right = rmsnorm(&x, &plus(&w), EPS as f64);
        close::<A>("y", &values(&b, &y), &right.0);
        close::<f32>("rstd", &values(&b, &rstd), &right.1);
        let again = b.rmsnorm_recompute(&act(&b, &x, rows), &rstd, rms);
        assert_eq!(b.download(&again), b.download(&y));

        let (h, y, rstd) = b.add_rmsnorm(&act(&b, &x, rows), act(&b, &r, rows), rms);
        let sum: Vec<f64> = x.iter().zip(&r).map(|(x, r)| A::store((x + r) as f32).load() as f64).collect();
        assert_eq!(values(&b, &h), sum);
        let right = rmsnorm(&sum, &plus(&w), EPS as f64);
        close::<A>("y of the sum", &values(&b, &y), &right.0);
        close::<f32>("rstd of the sum", &values(&b, &rstd), &right.1);
    }
}

fn backward<A: Float>(offset: f32) {
    let plus = |w: &[f64]| -> Vec<f64> { w.iter().map(|w| w + offset as f64).collect() };
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in SHAPES {
        let (x, w, dy) = (random::<A>(rows * cols, 1), random::<A>(cols, 2), random::<A>(rows * cols, 3));
        let (dres, before) = (random::<A>(rows * cols, 4), random::<f32>(cols, 5));
        let (input, weight) = (act(&b, &x, rows), act(&b, &w, 1));
        let rms = Rms { w: &weight, eps: EPS, offset };
        let (_, rstd) = b.rmsnorm(&input, rms);
        let mut dw = acc(&b, &before, 1);
        let dx = b.rmsnorm_bwd(act(&b, &dy, rows), &input, &rstd, rms, &mut dw);
        let right = differences(&x, |x| dot(&rmsnorm(x, &plus(&w), EPS as f64).0, &dy));
        close_to_differences::<A>("dx", &values(&b, &dx), &right, 1e-5);
        let right_dw: Vec<_> = differences(&w, |w| dot(&rmsnorm(&x, &plus(w), EPS as f64).0, &dy))
            .iter()
            .map(|&(i, d)| (i, d + before[i]))
            .collect();
        close_to_differences::<f32>("dw", &values(&b, &dw), &right_dw, 1e-5);

        let dx = b.rmsnorm_bwd_add(&act(&b, &dres, rows), act(&b, &dy, rows), &input, &rstd, rms, &mut dw);
        let right: Vec<_> = right.iter().map(|&(i, d)| (i, d + dres[i])).collect();
        close_to_differences::<A>("dx + dres", &values(&b, &dx), &right, 1e-5);
        let twice: Vec<_> = right_dw.iter().map(|&(i, d)| (i, 2.0 * d - before[i])).collect();
        close_to_differences::<f32>("dw, twice", &values(&b, &dw), &twice, 1e-5);
    }
}

fn layers<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in SHAPES {
        let [x, dy, dres] = [1, 2, 3].map(|seed| random::<A>(rows * cols, seed));
        let [w, bias] = [4, 5].map(|seed| random::<A>(cols, seed));
        let (input, weight, shift) = (act(&b, &x, rows), act(&b, &w, 1), act(&b, &bias, 1));
        let n = LayerNorm { w: &weight, bias: &shift, eps: EPS };
        let (y, stats) = b.layernorm(&input, n);
        close::<A>("y", &values(&b, &y), &layernorm(&x, &w, &bias, EPS as f64));

        let before = random::<f32>(cols, 6);
        let (mut dw, mut dbias) = (acc(&b, &before, 1), acc(&b, &before, 1));
        let dx = b.layernorm_bwd(None, act(&b, &dy, rows), &input, &stats, n, [&mut dw, &mut dbias]);
        let right = differences(&x, |x| dot(&layernorm(x, &w, &bias, EPS as f64), &dy));
        // A row of one element has no variance: its gradient is a cancellation times 1 / sqrt(eps).
        let slack = if cols == 1 { 1e-2 } else { 2e-5 };
        close_to_differences::<A>("dx", &values(&b, &dx), &right, slack);
        let added = |list: Vec<(usize, f64)>| -> Vec<_> { list.iter().map(|&(i, d)| (i, d + before[i])).collect() };
        let right_dw = added(differences(&w, |w| dot(&layernorm(&x, w, &bias, EPS as f64), &dy)));
        close_to_differences::<f32>("dw", &values(&b, &dw), &right_dw, 1e-5);
        let right_dbias = added(differences(&bias, |bias| dot(&layernorm(&x, &w, bias, EPS as f64), &dy)));
        close_to_differences::<f32>("dbias", &values(&b, &dbias), &right_dbias, 1e-5);

        let residual = act(&b, &dres, rows);
        let dx = b.layernorm_bwd(Some(&residual), act(&b, &dy, rows), &input, &stats, n, [&mut dw, &mut dbias]);
        let right: Vec<_> = right.iter().map(|&(i, d)| (i, d + dres[i])).collect();
        close_to_differences::<A>("dx + dres", &values(&b, &dx), &right, slack);
    }
}

#[test]
fn norms_in_f32() {
    for offset in [0.0, 1.0] {
        forward::<f32>(offset);
        backward::<f32>(offset);
    }
    layers::<f32>();
}

#[test]
fn norms_in_bf16() {
    for offset in [0.0, 1.0] {
        forward::<bf16>(offset);
        backward::<bf16>(offset);
    }
    layers::<bf16>();
}
