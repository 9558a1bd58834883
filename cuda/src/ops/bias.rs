//! Biases: added to rows, and their gradients, which are sums of rows.

use super::{BLOCK, sum_rows};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    BIAS_CU = "bias.cu" {
        ADD_BIAS = "add_bias": AddBias;
        ADD_BIAS_F32 = "add_bias_f32": AddBias;
        BIAS_BWD = "bias_bwd": BiasBwd;
    }
}

sized! { AddBias: 40, BiasBwd: 48 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AddBias {
    pub x: View,
    pub bias: View,
    pub n: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct BiasBwd {
    pub dy: View,
    pub parts: View,
    pub rows: u32,
    pub n: u32,
    /// Rows of a slab.
    pub each: u32,
    pub padding: u32,
}

/// Columns of a block of `bias_bwd`.
const COLUMNS: usize = 256;
/// The fewest rows of a slab, four for each warp: with fewer, the partial sums would be as long as the matrix.
const SLAB: usize = 32;

/// `add_bias`: (row, part of the row).
pub(super) fn add_bias_geometry(rows: usize, n: usize) -> Geometry {
    Geometry { grid: [rows as u32, n.div_ceil(8 * BLOCK as usize) as u32, 1], block: BLOCK, shared: 0 }
}

/// `add_bias_f32`: one thread per element.
pub(super) fn add_bias_f32_geometry(n: usize) -> Geometry {
    Geometry { grid: [n.div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `bias_bwd`: (columns, slab), about eight blocks for each multiprocessor.
pub(super) fn bias_bwd_geometry(rows: usize, n: usize, processors: usize) -> Geometry {
    let across = n.div_ceil(COLUMNS);
    let slabs = (8 * processors / across).clamp(1, rows.div_ceil(SLAB));
    // No slab may be empty: each has this many rows, and the last may have fewer.
    let slabs = rows.div_ceil(rows.div_ceil(slabs));
    Geometry { grid: [across as u32, slabs as u32, 1], block: BLOCK, shared: 8 * COLUMNS as u32 * 4 }
}

/// Partial sums, in f32 elements, that `bias_bwd` writes and `sum_rows` adds up.
pub fn bias_parts(rows: usize, n: usize, processors: usize) -> usize {
    bias_bwd_geometry(rows, n, processors).grid[1] as usize * n
}

/// x `[T, n]` += bias `[n]` in every row.
pub fn add_bias(m: &dyn Machine, x: View, bias: View) -> Done {
    let (n, rows) = (bias.len(), x.len() / bias.len());
    assert_eq!(x.len(), rows * n, "rows of {n} columns");
    // SAFETY: the views are checked against rows x n.
    unsafe { launch(m, ADD_BIAS, &AddBias { x, bias, n: n as u32, padding: 0 }, add_bias_geometry(rows, n)) }
}

/// x `[T, n]` (f32) += bias `[n]` in every row.
pub fn add_bias_f32(m: &dyn Machine, x: View, bias: View) -> Done {
    let (n, rows) = (bias.len(), x.len() / bias.len());
    assert_eq!(x.len(), rows * n, "rows of {n} columns");
    let args = AddBias { x, bias, n: n as u32, padding: 0 };
    // SAFETY: the views are checked against rows x n.
    unsafe { launch(m, ADD_BIAS_F32, &args, add_bias_f32_geometry(x.len())) }
}

/// dbias `[n]` += the sum of the rows of dy `[T, n]`. `parts` is scratch of [`bias_parts`] f32.
pub fn bias_bwd(m: &dyn Machine, dy: View, dbias: View, parts: View) -> Done {
    let (n, rows) = (dbias.len(), dy.len() / dbias.len());
    assert_eq!(dy.len(), rows * n, "rows of {n} columns");
    assert_eq!(parts.len(), bias_parts(rows, n, m.processors()), "partial sums of {rows} x {n}");
    let geometry = bias_bwd_geometry(rows, n, m.processors());
    let each = rows.div_ceil(geometry.grid[1] as usize) as u32;
    let args = BiasBwd { dy, parts, rows: rows as u32, n: n as u32, each, padding: 0 };
    // SAFETY: the views are checked against rows x n, and `parts` against one row per slab.
    unsafe { launch(m, BIAS_BWD, &args, geometry)? };
    sum_rows(m, parts, dbias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_slab_is_empty_and_none_is_too_short() {
        for (rows, n, processors) in [(1, 1, 132), (33, 1, 132), (8192, 4096, 132), (1000, 77, 108), (8192, 1 << 20, 4)]
        {
            let slabs = bias_bwd_geometry(rows, n, processors).grid[1] as usize;
            let each = rows.div_ceil(slabs);
            assert!((slabs - 1) * each < rows && slabs * each >= rows, "{slabs} slabs of {each} of {rows} rows");
            assert!(slabs == 1 || each >= SLAB / 2, "{slabs} slabs of {each} of {rows} rows");
        }
    }
}
