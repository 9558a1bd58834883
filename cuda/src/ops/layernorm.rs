//! LayerNorm, whose gradient adds the residual's.

use super::{NORM_COLUMNS, norm_block, sum_rows};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    LAYERNORM_CU = "layernorm.cu" {
        LAYERNORM = "layernorm": LayerNorm;
        LAYERNORM_BWD = "layernorm_bwd": LayerNormBwd;
        LAYERNORM_BWD_UNALIGNED = "layernorm_bwd_unaligned": LayerNormBwd;
    }
}

sized! { LayerNorm: 88, LayerNormBwd: 104 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LayerNorm {
    pub x: View,
    pub w: View,
    pub bias: View,
    pub y: View,
    pub stats: View,
    pub d: u32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LayerNormBwd {
    pub dres: View,
    pub dy: View,
    pub x: View,
    pub stats: View,
    pub w: View,
    pub parts: View,
    pub rows: u32,
    pub d: u32,
}

/// The most columns whose gradients `layernorm_bwd` sums in registers: with more than 512 threads they do not suffice.
pub(super) const LAYERNORM_COLUMNS: usize = NORM_COLUMNS / 2;

/// `layernorm`: one block per row.
pub(super) fn layernorm_geometry(rows: usize, d: usize) -> Geometry {
    Geometry { grid: [rows as u32, 1, 1], block: norm_block(d), shared: 256 }
}

/// `layernorm_bwd` and `layernorm_bwd_unaligned`: as many blocks as `processors` run at once. Each loops over rows and
/// writes one row of partial sums for each of the two gradients.
pub(super) fn layernorm_bwd_geometry(rows: usize, d: usize, processors: usize) -> Geometry {
    let block = norm_block(d);
    // With up to 128 registers per thread, 512 threads fit on a multiprocessor.
    let at_once = processors * (512 / block as usize).clamp(1, 8);
    Geometry { grid: [rows.min(at_once) as u32, 1, 1], block, shared: 512 }
}

/// Partial sums, in f32 elements, that `layernorm_bwd` writes and `sum_rows` adds up.
pub fn layernorm_parts(rows: usize, d: usize, processors: usize) -> usize {
    2 * layernorm_bwd_geometry(rows, d, processors).grid[0] as usize * d
}

/// A LayerNorm's weight and bias, `[D]` each, and its eps.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights {
    pub w: View,
    pub bias: View,
    pub eps: f32,
}

/// Writes y `[T, D]` and stats `[T, 2]` = (mean, rstd) of x `[T, D]`.
pub fn layernorm(m: &dyn Machine, x: View, n: LayerWeights, y: View, stats: View) -> Done {
    let LayerWeights { w, bias, eps } = n;
    let (rows, d) = (stats.len() / 2, w.len());
    assert_eq!((x.len(), y.len(), stats.len()), (rows * d, rows * d, 2 * rows), "LayerNorm of {rows} x {d}");
    assert_eq!(bias.len(), d, "elements of the bias");
    let args = LayerNorm { x, w, bias, y, stats, d: d as u32, eps };
    // SAFETY: the views are checked against rows x d.
    unsafe { launch(m, LAYERNORM, &args, layernorm_geometry(rows, d)) }
}

/// Inputs of the backward pass: x `[T, D]`, stats `[T, 2]`, w `[D]`; dres `[T, D]` may be empty.
#[derive(Debug, Clone, Copy)]
pub struct LayerBwd {
    pub dres: View,
    pub x: View,
    pub stats: View,
    pub w: View,
}

/// Overwrites dy with dx (+ dres) and accumulates the gradients of w and of the bias, `[D]` each. `parts` is scratch of
/// [`layernorm_parts`] f32.
pub fn layernorm_bwd(m: &dyn Machine, saved: LayerBwd, dy: View, [dw, dbias]: [View; 2], parts: View) -> Done {
    let LayerBwd { dres, x, stats, w } = saved;
    let (rows, d) = (stats.len() / 2, w.len());
    assert_eq!((x.len(), dy.len(), stats.len()), (rows * d, rows * d, 2 * rows), "LayerNorm's gradient, {rows} x {d}");
    assert_eq!([dw, dbias].map(|g| g.len()), [d; 2], "gradients of the weights of {d} columns");
    assert!(dres.is_empty() || dres.len() == rows * d, "{} elements of dres, {rows} x {d}", dres.len());
    assert_eq!(parts.len(), layernorm_parts(rows, d, m.processors()), "partial sums of {rows} x {d}");
    let whole = d % 8 == 0 && [dres, dy, x, w, parts].iter().all(|view| view.at() % 16 == 0);
    let kernel = if whole && d <= LAYERNORM_COLUMNS { LAYERNORM_BWD } else { LAYERNORM_BWD_UNALIGNED };
    let args = LayerNormBwd { dres, dy, x, stats, w, parts, rows: rows as u32, d: d as u32 };
    // SAFETY: the views are checked just above against rows x d, and `parts` against two rows per block.
    unsafe { launch(m, kernel, &args, layernorm_bwd_geometry(rows, d, m.processors()))? };
    let half = parts.len() / 2;
    sum_rows(m, parts.part::<f32>(0..half), dw)?;
    sum_rows(m, parts.part::<f32>(half..2 * half), dbias)
}
