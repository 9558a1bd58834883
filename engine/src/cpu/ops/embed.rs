//! The embedding table holds the ids `first .. first + V`; another id's row is zeros, and its gradient
//! is dropped.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::simd::vectorized;
use crate::cpu::tiles::{Tile, cut, widths};
use crate::cpu::workers::Workers;

/// Columns of the table that a task adds to.
const COLS: usize = 64;

/// The row of the table `[V, D]` that holds an id.
fn row_of(id: u32, first: usize, rows: usize) -> Option<usize> {
    (id as usize).checked_sub(first).filter(|&row| row < rows)
}

/// y `[T, D]` = the rows of the table `[V, D]` that ids `[T]` name.
pub fn embed<A: Float>(workers: &Workers, ids: &[u32], table: &[A], cols: usize, first: usize, y: &mut [A]) {
    let (rows, held) = (task_rows(cols), table.len() / cols);
    workers.each(ids.chunks(rows).zip(y.chunks_mut(rows * cols)), |(ids, y)| {
        for (&id, y) in ids.iter().zip(y.chunks_exact_mut(cols)) {
            match row_of(id, first, held) {
                Some(row) => y.copy_from_slice(&table[row * cols..][..cols]),
                None => y.fill(A::default()),
            }
        }
    });
}

/// dtable `[V, D]` += the rows of dy `[T, D]`, in their order. Each thread has columns of its own, so that no two add
/// to one element.
pub fn embed_bwd<A: Float>(workers: &Workers, ids: &[u32], dy: &[A], cols: usize, first: usize, dtable: &mut [f32]) {
    let held = dtable.len() / cols;
    let across = widths(cols, COLS);
    workers.each(cut(dtable, cols, held.max(1), &across).into_iter().enumerate(), |(n, mut dtable)| {
        let width = dtable.cols();
        for (&id, dy) in ids.iter().zip(dy.chunks_exact(cols)) {
            if let Some(row) = row_of(id, first, held) {
                add_row(&mut dtable, row, &dy[n * COLS..][..width]);
            }
        }
    });
}

vectorized! {
    fn add_row<A: Float>(dtable: &mut Tile<'_, f32>, row: usize, dy: &[A]) {
        for (sum, dy) in dtable.row(row).iter_mut().zip(dy) {
            *sum += dy.load();
        }
    }
}
