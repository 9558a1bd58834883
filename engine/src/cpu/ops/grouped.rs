//! Products whose rows are grouped by expert: a product of its own for each expert that has rows.

use super::elementwise;
use super::matmul::{Operand, ROWS, Start, deepest_scratch, product_scratch, product_within};
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
    match A::ROUNDS {
        // Sums to which a bias is added before they are rounded.
        true => [&[ROWS * n][..], &product_scratch::<f32>(n, k, threads)].concat(),
        false => product_scratch::<A>(n, k, threads).to_vec(),
    }
}

/// Scratch blocks, in f32 elements, of [`grouped_acc`] with k columns of x.
pub fn scratch_acc(k: usize, threads: usize) -> [usize; 2] {
    deepest_scratch(k, threads)
}

/// A bias for each expert, of some columns of the rows, times a weight of the row where there are weights.
#[derive(Clone, Copy)]
pub struct Bias<'a, A> {
    /// Expert after expert.
    pub bias: &'a [A],
    /// The first of the columns, and their number.
    pub first: usize,
    pub width: usize,
    pub weights: Option<&'a [f32]>,
}

impl<A: Float> Bias<'_, A> {
    /// The columns of a row that have a bias.
    fn columns(&self) -> Range<usize> {
        self.first..self.first + self.width
    }

    fn of(&self, expert: usize) -> &[A] {
        &self.bias[expert * self.width..(expert + 1) * self.width]
    }

    fn weight(&self, row: usize) -> f32 {
        self.weights.map_or(1.0, |weights| weights[row])
    }

    /// y `[rows, n]` = the bias of each row.
    fn fill<O: Float>(&self, expert: usize, rows: Range<usize>, n: usize, y: &mut [O]) {
        for (row, y) in rows.zip(y.chunks_exact_mut(n)) {
            y.fill(O::store(0.0));
            let weight = self.weight(row);
            let biased = y[self.columns()].iter_mut().zip(self.of(expert));
            biased.for_each(|(y, bias)| *y = O::store(weight * bias.load()));
        }
    }
}

/// dbias += the rows of dy `[R, n]`, in order and times their weights, in the columns of the bias.
pub fn bias_bwd<A: Float>(
    workers: &Workers,
    dy: &[A],
    groups: impl Iterator<Item = (usize, Range<usize>)>,
    bias: Bias<'_, A>,
    n: usize,
    dbias: &mut [f32],
) {
    let mut sums: Vec<Option<&mut [f32]>> = dbias.chunks_mut(bias.width).map(Some).collect();
    let tasks = groups.map(|(expert, rows)| (rows, sums[expert].take().expect("an expert is one group")));
    workers.each(tasks.collect::<Vec<_>>(), |(rows, sums)| {
        for row in rows {
            let (weight, dy) = (bias.weight(row), &dy[row * n..(row + 1) * n][bias.columns()]);
            sums.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += weight * dy.load());
        }
    });
}

/// dweights `[R]` += dy . bias, of dy `[R, n]` in the columns of the bias.
pub fn bias_dot<A: Float>(
    workers: &Workers,
    dy: &[A],
    groups: impl Iterator<Item = (usize, Range<usize>)>,
    bias: Bias<'_, A>,
    n: usize,
    dweights: &mut [f32],
) {
    let (mut rest, mut tasks) = (dweights, Vec::new());
    let mut before = 0;
    for (expert, rows) in groups {
        rest = rest.split_off_mut(rows.start - before..).expect("groups ascend");
        let own = rest.split_off_mut(..rows.len()).expect("groups have rows of the matrix");
        before = rows.end;
        tasks.push((expert, rows, own));
    }
    workers.each(tasks, |(expert, rows, dweights)| {
        for (row, dweight) in rows.zip(dweights) {
            let dy = &dy[row * n..(row + 1) * n][bias.columns()];
            *dweight += dy.iter().zip(bias.of(expert)).map(|(dy, bias)| dy.load() * bias.load()).sum::<f32>();
        }
    });
}

/// y `[R, n]` = x `[R, k]` times the matrix `[k, n]` of each row's expert, plus its bias if there is one.
#[allow(clippy::too_many_arguments)]
pub fn grouped<'a, A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    x: &[A],
    groups: impl Iterator<Item = (usize, Range<usize>)>,
    weights: impl Fn(usize) -> Operand<'a, A>,
    bias: Option<Bias<'_, A>>,
    [n, k]: [usize; 2],
    y: &mut [A],
) {
    let mut blocks: Vec<_> =
        scratch::<A>(n, k, workers.threads()).into_iter().map(|len| pool.take::<f32>(len)).collect();
    let mut slices = blocks.iter_mut().map(|block| block.as_mut_slice());
    let mut sums = if A::ROUNDS { slices.next() } else { None };
    let [packed, tiles] = [slices.next(), slices.next()].map(|slice| slice.expect("a block for each"));
    for (expert, rows) in groups {
        let w = weights(expert);
        // Sums that are rounded later have scratch for some rows.
        let step = if sums.is_some() { ROWS } else { rows.len() };
        for from in rows.clone().step_by(step) {
            let rows = from..rows.end.min(from + step);
            let start = if bias.is_some() { Start::Output } else { Start::Zero };
            let (x, y) = (&x[rows.start * k..rows.end * k], &mut y[rows.start * n..rows.end * n]);
            let x = Operand::new(x, rows.len(), k);
            match &mut sums {
                None => {
                    bias.iter().for_each(|bias| bias.fill(expert, rows.clone(), n, y));
                    product_within(workers, [&mut *packed, &mut *tiles], x, w, start, y);
                }
                Some(sums) => {
                    let sums = &mut sums[..y.len()];
                    bias.iter().for_each(|bias| bias.fill(expert, rows.clone(), n, sums));
                    product_within(workers, [&mut *packed, &mut *tiles], x, w, start, sums);
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
