//! Biases: y = x + b in every row, and db = the sum of the rows of dy.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::simd::vectorized;
use crate::cpu::tiles::{cut, widths};
use crate::cpu::workers::Workers;

/// Columns of a task of [`bias_bwd`].
const COLS: usize = 64;

/// x `[T, n]` += bias `[n]` in every row, rounded.
pub fn add_bias<A: Float>(workers: &Workers, x: &mut [A], bias: &[A]) {
    workers.each(x.chunks_mut(task_rows(bias.len()) * bias.len()), |x| add(x, bias));
}

vectorized! {
    fn add<A: Float>(x: &mut [A], bias: &[A]) {
        for x in x.chunks_exact_mut(bias.len()) {
            for (x, bias) in x.iter_mut().zip(bias) {
                *x = A::store(x.load() + bias.load());
            }
        }
    }
}

/// x `[T, n]` += bias `[n]` in every row, in f32.
pub fn add_to_sums<A: Float>(workers: &Workers, x: &mut [f32], bias: &[A]) {
    workers.each(x.chunks_mut(task_rows(bias.len()) * bias.len()), |x| {
        for x in x.chunks_exact_mut(bias.len()) {
            x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias.load());
        }
    });
}

/// dbias `[n]` += the rows of dy `[T, n]`, in order.
pub fn bias_bwd<A: Float>(workers: &Workers, dy: &[A], dbias: &mut [f32]) {
    let n = dbias.len();
    let across = widths(n, COLS);
    workers.each(cut(dbias, n, 1, &across).into_iter().enumerate(), |(at, mut dbias)| {
        add_rows(&dy[at * COLS..], n, dbias.row(0));
    });
}

vectorized! {
    /// sums += the first elements of every `stride` of dy.
    fn add_rows<A: Float>(dy: &[A], stride: usize, sums: &mut [f32]) {
        for dy in dy.chunks(stride) {
            for (sum, dy) in sums.iter_mut().zip(dy) {
                *sum += dy.load();
            }
        }
    }
}
