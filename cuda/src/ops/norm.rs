//! RMSNorm, with the residual's sum before it and the residual's gradient after it.

use crate::args::{RmsNorm, RmsNormBwd, SumRows, View};
use crate::geometry;
use crate::kernels::{RMSNORM, RMSNORM_AGAIN, RMSNORM_BWD, RMSNORM_BWD_LONG, SUM_ROWS};
use crate::machine::{Done, Machine, launch};

/// y `[T, D]` and rstd `[T]` of x, or of h += x where `h` has elements.
pub fn rmsnorm(m: &dyn Machine, x: View, h: View, w: View, eps: f32, y: View, rstd: View) -> Done {
    let (rows, d) = (rstd.len(), w.len());
    assert!(h.is_empty() || h.len() == rows * d, "RMSNorm adds {} elements to {rows} x {d}", x.len());
    let args = args(x, h, w, y, rstd, eps);
    // SAFETY: `args` holds the views to rows x d.
    unsafe { launch(m, RMSNORM, &args, geometry::rmsnorm(rows, d)) }
}

/// y again from x and rstd.
pub fn rmsnorm_recompute(m: &dyn Machine, x: View, rstd: View, w: View, y: View) -> Done {
    let args = args(x, View::NONE, w, y, rstd, 0.0);
    // SAFETY: as above.
    unsafe { launch(m, RMSNORM_AGAIN, &args, geometry::rmsnorm(rstd.len(), w.len())) }
}

fn args(x: View, h: View, w: View, y: View, rstd: View, eps: f32) -> RmsNorm {
    let (rows, d) = (rstd.len(), w.len());
    assert_eq!((x.len(), y.len()), (rows * d, rows * d), "RMSNorm of {rows} x {d}");
    RmsNorm { x, h, w, y, rstd, rows: rows as u32, d: d as u32, eps, unused: 0 }
}

/// What the backward of RMSNorm reads: x `[T, D]`, rstd `[T]`, w `[D]`, and dres `[T, D]` where it has elements.
#[derive(Debug, Clone, Copy)]
pub struct NormBwd {
    pub dres: View,
    pub x: View,
    pub rstd: View,
    pub w: View,
}

/// dx (+ dres) in the place of dy; dw `[D]` is added to. `parts` is scratch of [`geometry::norm_parts`] f32.
pub fn rmsnorm_bwd(m: &dyn Machine, saved: NormBwd, dy: View, dw: View, parts: View) -> Done {
    let NormBwd { dres, x, rstd, w } = saved;
    let (rows, d) = (rstd.len(), w.len());
    let first = geometry::rmsnorm_bwd(rows, d, m.processors());
    let blocks = first.grid[0] as usize;
    assert_eq!((x.len(), dy.len(), dw.len()), (rows * d, rows * d, d), "RMSNorm's gradient of {rows} x {d}");
    assert!(dres.is_empty() || dres.len() == rows * d, "{} elements of dres, {rows} x {d}", dres.len());
    assert_eq!(parts.len(), geometry::norm_parts(rows, d, m.processors()), "parts of {blocks} blocks");
    let kernel = if d > geometry::NORM_BWD_COLUMNS { RMSNORM_BWD_LONG } else { RMSNORM_BWD };
    let args = RmsNormBwd { dres, dy, x, rstd, w, parts, rows: rows as u32, d: d as u32 };
    let sum = SumRows { parts, to: dw, rows: blocks as u32, cols: d as u32 };
    // SAFETY: the views are held to rows x d, and to a row of parts a block, just above.
    unsafe {
        launch(m, kernel, &args, first)?;
        launch(m, SUM_ROWS, &sum, geometry::sum_rows(d))
    }
}
