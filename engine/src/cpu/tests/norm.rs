//! RMSNorm and its backward.

use super::reference::rmsnorm;
use super::{THREADS, acc, act, close, close_to_differences, differences, dot, random, values};
use crate::backend::Backend;
use crate::cpu::{Cpu, Float};
use half::bf16;

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 7), (3, 64), (70, 33), (130, 288), (2, 1000)];
const EPS: f32 = 1e-5;

fn forward<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in SHAPES {
        let (x, r, w) = (random::<A>(rows * cols, 1), random::<A>(rows * cols, 2), random::<A>(cols, 3));
        let weight = act(&b, &w, 1);
        let (y, rstd) = b.rmsnorm(&act(&b, &x, rows), &weight, EPS);
        let right = rmsnorm(&x, &w, EPS as f64);
        close::<A>("y", &values(&b, &y), &right.0);
        close::<f32>("rstd", &values(&b, &rstd), &right.1);
        let again = b.rmsnorm_recompute(&act(&b, &x, rows), &rstd, &weight);
        assert_eq!(b.download(&again), b.download(&y));

        let (h, y, rstd) = b.add_rmsnorm(&act(&b, &x, rows), act(&b, &r, rows), &weight, EPS);
        let sum: Vec<f64> = x.iter().zip(&r).map(|(x, r)| A::store((x + r) as f32).load() as f64).collect();
        assert_eq!(values(&b, &h), sum);
        let right = rmsnorm(&sum, &w, EPS as f64);
        close::<A>("y of the sum", &values(&b, &y), &right.0);
        close::<f32>("rstd of the sum", &values(&b, &rstd), &right.1);
    }
}

fn backward<A: Float>() {
    let b = Cpu::<A>::new(THREADS);
    for (rows, cols) in SHAPES {
        let (x, w, dy) = (random::<A>(rows * cols, 1), random::<A>(cols, 2), random::<A>(rows * cols, 3));
        let (dres, before) = (random::<A>(rows * cols, 4), random::<f32>(cols, 5));
        let (input, weight) = (act(&b, &x, rows), act(&b, &w, 1));
        let (_, rstd) = b.rmsnorm(&input, &weight, EPS);
        let mut dw = acc(&b, &before, 1);
        let dx = b.rmsnorm_bwd(act(&b, &dy, rows), &input, &rstd, &weight, &mut dw);
        let right = differences(&x, |x| dot(&rmsnorm(x, &w, EPS as f64).0, &dy));
        close_to_differences::<A>("dx", &values(&b, &dx), &right, 1e-5);
        let right_dw: Vec<_> = differences(&w, |w| dot(&rmsnorm(&x, w, EPS as f64).0, &dy))
            .iter()
            .map(|&(i, d)| (i, d + before[i]))
            .collect();
        close_to_differences::<f32>("dw", &values(&b, &dw), &right_dw, 1e-5);

        let dx = b.rmsnorm_bwd_add(&act(&b, &dres, rows), act(&b, &dy, rows), &input, &rstd, &weight, &mut dw);
        let right: Vec<_> = right.iter().map(|&(i, d)| (i, d + dres[i])).collect();
        close_to_differences::<A>("dx + dres", &values(&b, &dx), &right, 1e-5);
        let twice: Vec<_> = right_dw.iter().map(|&(i, d)| (i, 2.0 * d - before[i])).collect();
        close_to_differences::<f32>("dw, twice", &values(&b, &dw), &twice, 1e-5);
    }
}

#[test]
fn norms_in_f32() {
    forward::<f32>();
    backward::<f32>();
}

#[test]
fn norms_in_bf16() {
    forward::<bf16>();
    backward::<bf16>();
}
