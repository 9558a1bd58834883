//! Every op against a naive f64 reference, every backward against central differences of that reference,
//! in f32 and bf16; the same bits on any number of threads; nothing allocated the second time.

mod attention;
mod experts;
mod loss;
mod matmul;
mod norm;
mod reference;
mod rows;
mod whole;

use super::{Cpu, Float};
use crate::backend::{Acc, Act, Backend, Tensor};

/// Threads of the backends under test: more than one, so that tasks are handed out.
const THREADS: usize = 2;

/// Numbers in -1 .. 1 from a seed, rounded to the activations' precision.
fn random<A: Float>(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 / (1 << 23) as f64 - 1.0) as f32
    };
    (0..len).map(|_| A::store(next()).load() as f64).collect()
}

fn act<A: Float>(b: &Cpu<A>, x: &[f64], rows: usize) -> Act<Cpu<A>> {
    let held: Vec<A> = x.iter().map(|&x| A::store(x as f32)).collect();
    b.upload(&held, rows, x.len() / rows)
}

fn acc<A: Float>(b: &Cpu<A>, x: &[f64], rows: usize) -> Acc<Cpu<A>> {
    let held: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    b.upload(&held, rows, x.len() / rows)
}

fn column<A: Float>(b: &Cpu<A>, x: &[u32]) -> Tensor<Cpu<A>, u32> {
    b.upload(x, x.len(), 1)
}

fn values<A: Float, T: Float>(b: &Cpu<A>, x: &Tensor<Cpu<A>, T>) -> Vec<f64> {
    b.download(x).into_iter().map(|x| x.load() as f64).collect()
}

/// Asserts that a result differs by one rounding to `T` at most: half a unit of each value, and the error of the sums.
fn close<T: Float>(what: &str, got: &[f64], right: &[f64]) {
    within(what, got, right, if T::ROUNDS { 1.0 / 256.0 } else { 1e-6 }, 1e-5);
}

/// Asserts that |got - right| <= relative |right| + absolute max(|right|, 0.1), everywhere. Inputs are about 1, so that
/// values much smaller than 0.1 are left over from a cancellation.
fn within(what: &str, got: &[f64], right: &[f64], relative: f64, absolute: f64) {
    assert_eq!(got.len(), right.len(), "{what}: elements");
    let max = right.iter().fold(0.1f64, |max, x| max.max(x.abs()));
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        let most = relative * right.abs() + absolute * max;
        assert!((got - right).abs() <= most, "{what}[{i}]: {got:e}, not {right:e} (max {max:e})");
    }
}

/// The derivative of `f` by x at some of the elements (all, if there are few): (index, derivative).
fn differences(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<(usize, f64)> {
    let (len, step) = (x.len(), (x.len() / 40).max(1) | 1);
    let mut x = x.to_vec();
    let mut slope = |i: usize| {
        let at = x[i];
        x[i] = at + 1e-5;
        let right = f(&x);
        x[i] = at - 1e-5;
        let left = f(&x);
        x[i] = at;
        (i, (right - left) / 2e-5)
    };
    (0..len).step_by(step).map(&mut slope).collect()
}

/// Compares a gradient with the differences.
fn close_to_differences<T: Float>(what: &str, got: &[f64], right: &[(usize, f64)], slack: f64) {
    let (at, right): (Vec<usize>, Vec<f64>) = right.iter().copied().unzip();
    let got: Vec<f64> = at.iter().map(|&i| got[i]).collect();
    within(what, &got, &right, if T::ROUNDS { 1.0 / 256.0 } else { 1e-5 }, slack);
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
