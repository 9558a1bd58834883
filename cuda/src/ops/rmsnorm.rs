//! RMSNorm, fused with the residual add before it and with the residual's gradient after it.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    RMSNORM_CU = "rmsnorm.cu" {
        RMSNORM = "rmsnorm": RmsNorm;
        RMSNORM_RECOMPUTE = "rmsnorm_recompute": RmsNorm;
        RMSNORM_BWD = "rmsnorm_bwd": RmsNormBwd;
        RMSNORM_BWD_UNALIGNED = "rmsnorm_bwd_unaligned": RmsNormBwd;
        SUM_ROWS = "sum_rows": SumRows;
    }
}

sized! { RmsNorm: 96, RmsNormBwd: 112, SumRows: 40 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    pub x: View,
    pub h: View,
    pub w: View,
    pub y: View,
    pub rstd: View,
    pub rows: u32,
    pub d: u32,
    pub eps: f32,
    pub offset: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RmsNormBwd {
    pub dres: View,
    pub dy: View,
    pub x: View,
    pub rstd: View,
    pub w: View,
    pub parts: View,
    pub rows: u32,
    pub d: u32,
    pub offset: f32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SumRows {
    pub parts: View,
    pub to: View,
    pub rows: u32,
    pub cols: u32,
}

/// The most columns that the kernels support: 1024 threads with two vectors of eight elements in registers.
pub const NORM_COLUMNS: usize = 16384;

/// Whole warps with 16 columns per thread.
pub(super) fn norm_block(d: usize) -> u32 {
    assert!(d > 0 && d <= NORM_COLUMNS, "a norm over {d} columns, more than {NORM_COLUMNS}");
    (d.div_ceil(16).next_multiple_of(32)) as u32
}

/// `rmsnorm` and `rmsnorm_recompute`: one block per row.
pub(super) fn rmsnorm_geometry(rows: usize, d: usize) -> Geometry {
    Geometry { grid: [rows as u32, 1, 1], block: norm_block(d), shared: 128 }
}

/// `rmsnorm_bwd` and `rmsnorm_bwd_unaligned`: as many blocks as `processors` run at once. Each loops over rows and
/// writes one row of partial sums.
pub(super) fn rmsnorm_bwd_geometry(rows: usize, d: usize, processors: usize) -> Geometry {
    let block = norm_block(d);
    // With 64 registers per thread, 1024 threads fit on a multiprocessor.
    let at_once = processors * (1024 / block as usize).clamp(1, 8);
    Geometry { grid: [rows.min(at_once) as u32, 1, 1], block, shared: 256 }
}

/// Partial sums, in f32 elements, that `rmsnorm_bwd` writes and `sum_rows` adds up.
pub fn norm_parts(rows: usize, d: usize, processors: usize) -> usize {
    rmsnorm_bwd_geometry(rows, d, processors).grid[0] as usize * d
}

/// `sum_rows`: 32 columns per block.
pub(super) fn sum_rows_geometry(cols: usize) -> Geometry {
    Geometry { grid: [cols.div_ceil(32) as u32, 1, 1], block: BLOCK, shared: 1024 }
}

/// A norm's weight `[D]`, to which `offset` is added, and its eps.
#[derive(Debug, Clone, Copy)]
pub struct NormWeight {
    pub w: View,
    pub eps: f32,
    pub offset: f32,
}

/// Writes y `[T, D]` and rstd `[T]`, normalizing x, or h += x where `h` is not empty.
pub fn rmsnorm(m: &dyn Machine, x: View, h: View, n: NormWeight, y: View, rstd: View) -> Done {
    let (rows, d) = (rstd.len(), n.w.len());
    assert!(h.is_empty() || h.len() == rows * d, "RMSNorm adds {} elements to {rows} x {d}", x.len());
    let args = args(x, h, n, y, rstd);
    // SAFETY: `args` checks the views against rows x d.
    unsafe { launch(m, RMSNORM, &args, rmsnorm_geometry(rows, d)) }
}

/// Recomputes y from x and rstd.
pub fn rmsnorm_recompute(m: &dyn Machine, x: View, rstd: View, n: NormWeight, y: View) -> Done {
    let args = args(x, View::NONE, n, y, rstd);
    // SAFETY: as above.
    unsafe { launch(m, RMSNORM_RECOMPUTE, &args, rmsnorm_geometry(rstd.len(), n.w.len())) }
}

fn args(x: View, h: View, n: NormWeight, y: View, rstd: View) -> RmsNorm {
    let (rows, d) = (rstd.len(), n.w.len());
    assert_eq!((x.len(), y.len()), (rows * d, rows * d), "RMSNorm of {rows} x {d}");
    RmsNorm { x, h, w: n.w, y, rstd, rows: rows as u32, d: d as u32, eps: n.eps, offset: n.offset }
}

/// Inputs of the backward pass: x `[T, D]`, rstd `[T]`, w `[D]`; dres `[T, D]` may be empty.
#[derive(Debug, Clone, Copy)]
pub struct NormBwd {
    pub dres: View,
    pub x: View,
    pub rstd: View,
    pub n: NormWeight,
}

/// Overwrites dy with dx (+ dres) and accumulates dw `[D]`. `parts` is scratch of [`norm_parts`] f32.
pub fn rmsnorm_bwd(m: &dyn Machine, saved: NormBwd, dy: View, dw: View, parts: View) -> Done {
    let NormBwd { dres, x, rstd, n: NormWeight { w, offset, .. } } = saved;
    let (rows, d) = (rstd.len(), w.len());
    let first = rmsnorm_bwd_geometry(rows, d, m.processors());
    let blocks = first.grid[0] as usize;
    assert_eq!((x.len(), dy.len(), dw.len()), (rows * d, rows * d, d), "RMSNorm's gradient of {rows} x {d}");
    assert!(dres.is_empty() || dres.len() == rows * d, "{} elements of dres, {rows} x {d}", dres.len());
    assert_eq!(parts.len(), norm_parts(rows, d, m.processors()), "partial sums of {blocks} blocks");
    let whole = d % 8 == 0 && [dres, dy, x, w, parts].iter().all(|view| view.at() % 16 == 0);
    let kernel = if whole { RMSNORM_BWD } else { RMSNORM_BWD_UNALIGNED };
    let args = RmsNormBwd { dres, dy, x, rstd, w, parts, rows: rows as u32, d: d as u32, offset, padding: 0 };
    // SAFETY: the views are checked just above against rows x d, and `parts` against one row per block.
    unsafe { launch(m, kernel, &args, first)? };
    sum_rows(m, parts, dw)
}

/// to `[n]` += the rows of parts `[rows, n]`, in order.
pub(super) fn sum_rows(m: &dyn Machine, parts: View, to: View) -> Done {
    let (cols, rows) = (to.len(), parts.len() / to.len());
    assert_eq!(parts.len(), rows * cols, "rows of {cols} partial sums");
    let args = SumRows { parts, to, rows: rows as u32, cols: cols as u32 };
    // SAFETY: the views are checked against rows x cols.
    unsafe { launch(m, SUM_ROWS, &args, sum_rows_geometry(cols)) }
}
