//! Products whose rows are grouped by expert: a product of its own for each expert that has rows.

use super::elementwise;
use super::matmul::{Operand, ROWS, Start, deepest_scratch, product_scratch, product_within, sums_apart};
use crate::cpu::float::Float;
use crate::cpu::pool::Pool;
use crate::cpu::workers::Workers;
use std::ops::Range;
use std::rc::Rc;

/// The experts' rows of a matrix that has the sorted rows `first ..`: (expert, rows), only those with rows.
pub fn rows_of(counts: &[u32], first: usize, rows: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut end = 0;
    let range = move |(expert, &count): (usize, &u32)| {
        let from = end;
        end += count as usize;
        let here = |at: usize| at.saturating_sub(first).min(rows);
        (expert, here(from)..here(end))
    };
    counts.iter().enumerate().map(range).filter(|(_, rows)| !rows.is_empty())
}

/// Scratch blocks, in f32 elements, of [`grouped`].
pub fn scratch<A: Float>(n: usize, k: usize, threads: usize) -> Vec<usize> {
    match sums_apart::<A>(k) {
        true => [&[ROWS * n][..], &product_scratch::<f32>(n, k, threads)].concat(),
        false => product_scratch::<A>(n, k, threads).to_vec(),
    }
}

/// Scratch blocks, in f32 elements, of [`grouped_acc`] with k columns of x.
pub fn scratch_acc(k: usize, threads: usize) -> [usize; 2] {
    deepest_scratch(k, threads)
}

/// y `[R, n]` = x `[R, k]` times the matrix `[k, n]` of each row's expert.
pub fn grouped<'a, A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    x: &[A],
    groups: impl Iterator<Item = (usize, Range<usize>)>,
    weights: impl Fn(usize) -> Operand<'a, A>,
    [n, k]: [usize; 2],
    y: &mut [A],
) {
    let mut blocks: Vec<_> =
        scratch::<A>(n, k, workers.threads()).into_iter().map(|len| pool.take::<f32>(len)).collect();
    let mut slices = blocks.iter_mut().map(|block| block.as_mut_slice());
    let mut sums = if sums_apart::<A>(k) { slices.next() } else { None };
    let [packed, tiles] = [slices.next(), slices.next()].map(|slice| slice.expect("a block for each"));
    for (expert, rows) in groups {
        let w = weights(expert);
        // Sums that are rounded later have scratch for some rows.
        let step = if sums.is_some() { ROWS } else { rows.len() };
        for from in rows.clone().step_by(step) {
            let rows = from..rows.end.min(from + step);
            let (x, y) = (&x[rows.start * k..rows.end * k], &mut y[rows.start * n..rows.end * n]);
            let x = Operand::new(x, rows.len(), k);
            match &mut sums {
                None => product_within(workers, [&mut *packed, &mut *tiles], x, w, Start::Zero, y),
                Some(sums) => {
                    let sums = &mut sums[..y.len()];
                    product_within(workers, [&mut *packed, &mut *tiles], x, w, Start::Zero, sums);
                    elementwise::round(workers, sums, y);
                }
            }
        }
    }
}

/// For each expert: dw `[n, k]` += dy^T x over its rows of dy `[R, n]` and x `[R, k]`. The gradients of the experts are
/// stacked along the rows.
pub fn grouped_acc<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    dy: &[A],
    x: &[A],
    groups: impl Iterator<Item = (usize, Range<usize>)>,
    [n, k]: [usize; 2],
    dw: &mut [f32],
) {
    let [mut packed, mut tiles] = scratch_acc(k, workers.threads()).map(|len| pool.take::<f32>(len));
    for (expert, rows) in groups {
        let dy = Operand::new(&dy[rows.start * n..rows.end * n], rows.len(), n);
        let x = Operand::new(&x[rows.start * k..rows.end * k], rows.len(), k);
        let dw = &mut dw[expert * n * k..(expert + 1) * n * k];
        product_within(workers, [packed.as_mut_slice(), tiles.as_mut_slice()], dy.t(), x, Start::Output, dw);
    }
}
