//! Products of matrices, on the `gemm` crate. The output is cut into tiles by its shape alone and each
//! tile is one thread's, so the order of every sum is fixed.

use super::elementwise::{store, widen};
use crate::cpu::float::Float;
use crate::cpu::pool::Pool;
use crate::cpu::tiles::{Tile, cut, widths};
use crate::cpu::workers::Workers;
use std::rc::Rc;

/// Rows and columns of a tile of the output.
const TILE: (usize, usize) = (256, 1024);

/// A matrix to be read, or its transpose.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> Mat<'a> {
    /// The first `cols` of every `stride` elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let end = if rows * cols == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(cols <= stride && end <= data.len(), "{rows} x {cols} by {stride} of {} elements", data.len());
        Mat { data, rows, cols, row_step: stride, col_step: 1 }
    }

    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }

    fn rows_from(self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows, "rows {first} + {rows} of {}", self.rows);
        Mat { data: &self.data[(first * self.row_step).min(self.data.len())..], rows, ..self }
    }

    fn cols_from(self, first: usize, cols: usize) -> Self {
        self.t().rows_from(first, cols).t()
    }
}

/// out = keep out + a b, on this thread; `keep` is 0 or 1, and 0 reads nothing.
pub fn gemm(out: &mut Tile<'_, f32>, keep: f32, a: Mat<'_>, b: Mat<'_>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!((out.rows(), out.cols(), b.rows), (m, n, k), "product of {m} x {k} and {} x {n}", b.rows);
    let stride = out.stride() as isize;
    // SAFETY: `Mat::new` and `Tile` hold that their rows and columns are inside their memory, the shapes
    // agree (asserted), and `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride,
            keep != 0.0,
            a.data.as_ptr(),
            a.col_step as isize,
            a.row_step as isize,
            b.data.as_ptr(),
            b.col_step as isize,
            b.row_step as isize,
            keep,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A matrix in memory: elements and shape.
pub struct Operand<'a, A> {
    pub data: &'a [A],
    pub rows: usize,
    pub cols: usize,
    pub transposed: bool,
}

impl<A: Float> Operand<'_, A> {
    /// Runs `f` on the operand in f32, converted into scratch where it is not.
    fn with<R>(&self, workers: &Workers, pool: &Rc<Pool>, f: impl FnOnce(Mat<'_>) -> R) -> R {
        let view = |data| {
            let mat = Mat::new(data, self.rows, self.cols, self.cols);
            if self.transposed { mat.t() } else { mat }
        };
        match A::as_f32(self.data) {
            Some(data) => f(view(data)),
            None => {
                let mut scratch = pool.take(self.data.len());
                widen(workers, self.data, scratch.as_mut_slice());
                f(view(scratch.as_slice()))
            }
        }
    }
}

/// out = a b, rounded.
pub fn matmul<A: Float>(workers: &Workers, pool: &Rc<Pool>, a: Operand<'_, A>, b: Operand<'_, A>, out: &mut [A]) {
    a.with(workers, pool, |a| b.with(workers, pool, |b| product(workers, pool, a, b, 0.0, out)));
}

/// out += a b, in f32.
pub fn matmul_acc<A: Float>(workers: &Workers, pool: &Rc<Pool>, a: Operand<'_, A>, b: Operand<'_, A>, out: &mut [f32]) {
    a.with(workers, pool, |a| b.with(workers, pool, |b| product(workers, pool, a, b, 1.0, out)));
}

fn product<A: Float>(workers: &Workers, pool: &Rc<Pool>, a: Mat<'_>, b: Mat<'_>, keep: f32, out: &mut [A]) {
    let across = widths(b.cols, TILE.1);
    let tiles = cut(out, b.cols, TILE.0, &across);
    let tasks = tiles.into_iter().enumerate().map(|(n, tile)| {
        let (top, left) = (n / across.len() * TILE.0, n % across.len() * TILE.1);
        (a.rows_from(top, tile.rows()), b.cols_from(left, tile.cols()), tile)
    });
    let scratch_len = if A::ROUNDS { TILE.0 * TILE.1 } else { 1 };
    let mut scratch = pool.take::<f32>(scratch_len * workers.threads());
    workers.each_with(tasks, scratch.as_mut_slice().chunks_mut(scratch_len), |(a, b, mut tile), scratch| {
        let (rows, cols) = (tile.rows(), tile.cols());
        match A::as_f32_tile(&mut tile) {
            Some(tile) => gemm(tile, keep, a, b),
            None => {
                let sums = &mut scratch[..rows * cols];
                gemm(&mut Tile::whole(sums, rows, cols), 0.0, a, b);
                (0..rows).for_each(|r| store(&sums[r * cols..][..cols], tile.row(r)));
            }
        }
    });
}
