//! Cross-entropy over this rank's shard of the vocabulary.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    XENT_CU = "xent.cu" {
        XENT_STATS = "xent_stats": XentStats;
        XENT_COMBINE = "xent_combine": XentCombine;
        XENT_TOTALS = "xent_totals": XentTotals;
        XENT_GRAD = "xent_grad": XentGrad;
    }
}

sized! { XentStats: 56, XentCombine: 40, XentTotals: 48, XentGrad: 80 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentStats {
    pub logits: View,
    pub targets: View,
    pub stats: View,
    pub cols: u32,
    pub first: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentCombine {
    pub stats: View,
    pub combined: View,
    pub ranks: u32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentTotals {
    pub stats: View,
    pub weights: View,
    pub totals: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentGrad {
    pub logits: View,
    pub stats: View,
    pub targets: View,
    pub weights: View,
    pub cols: u32,
    pub first: u32,
    pub z_loss: f32,
    pub padding: u32,
}

/// `xent_stats`: one block per row, up to four vectors of eight elements per thread at once.
pub(super) fn xent_stats_geometry(rows: usize, cols: usize) -> Geometry {
    let block = (cols.div_ceil(32).next_multiple_of(32) as u32).min(512);
    Geometry { grid: [rows as u32, 1, 1], block, shared: 256 }
}

/// `xent_grad`: the same blocks.
pub(super) fn xent_grad_geometry(rows: usize, cols: usize) -> Geometry {
    Geometry { shared: 0, ..xent_stats_geometry(rows, cols) }
}

/// `xent_combine`: one thread per row.
pub(super) fn xent_combine_geometry(rows: usize) -> Geometry {
    Geometry { grid: [rows.div_ceil(BLOCK as usize).max(1) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `xent_totals`: one block.
pub(super) fn xent_totals_geometry() -> Geometry {
    Geometry { grid: [1, 1, 1], block: BLOCK, shared: 768 }
}

/// stats `[C, 3]` of logits `[C, V]` and targets `[C]`; the first column has the id `first`.
pub fn xent_stats(m: &dyn Machine, logits: View, targets: View, first: usize, stats: View) -> Done {
    let (rows, cols) = shape(logits, targets);
    assert_eq!(stats.len(), 3 * rows, "statistics of {rows} rows");
    let args = XentStats { logits, targets, stats, cols: cols as u32, first: first as u32 };
    // SAFETY: the views are checked against rows x cols.
    unsafe { launch(m, XENT_STATS, &args, xent_stats_geometry(rows, cols)) }
}

/// Combines the statistics `[ranks, C, 3]` of the vocabulary's shards into `combined` `[C, 3]`.
pub fn xent_combine(m: &dyn Machine, stats: View, combined: View) -> Done {
    let (rows, ranks) = (combined.len() / 3, stats.len() / combined.len());
    assert_eq!((combined.len(), stats.len()), (3 * rows, ranks * 3 * rows), "statistics of {rows} rows");
    let args = XentCombine { stats, combined, ranks: ranks as u32, rows: rows as u32 };
    // SAFETY: the views are checked against rows and ranks.
    unsafe { launch(m, XENT_COMBINE, &args, xent_combine_geometry(rows)) }
}

/// Accumulates the loss totals `[3]` of stats `[C, 3]` and weights `[C]`.
pub fn xent_totals(m: &dyn Machine, stats: View, weights: View, totals: View) -> Done {
    assert_eq!((stats.len(), totals.len()), (3 * weights.len(), 3), "totals of {} rows", weights.len());
    // SAFETY: the views are checked against the rows.
    unsafe { launch(m, XENT_TOTALS, &XentTotals { stats, weights, totals }, xent_totals_geometry()) }
}

/// Inputs of the gradient beside the logits of C rows.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// `[C, 3]`, over the whole vocabulary.
    pub stats: View,
    pub targets: View,
    pub weights: View,
}

/// Overwrites logits `[C, V]` with their gradient; the first column has the id `first`.
pub fn xent_grad(m: &dyn Machine, logits: View, inputs: Rows, first: usize, z_loss: f32) -> Done {
    let Rows { stats, targets, weights } = inputs;
    let (rows, cols) = shape(logits, targets);
    assert_eq!((stats.len(), weights.len()), (3 * rows, rows), "the gradient of {rows} rows");
    let (first, padding) = (first as u32, 0);
    let args = XentGrad { logits, stats, targets, weights, cols: cols as u32, first, z_loss, padding };
    // SAFETY: the views are checked against rows x cols.
    unsafe { launch(m, XENT_GRAD, &args, xent_grad_geometry(rows, cols)) }
}

fn shape(logits: View, targets: View) -> (usize, usize) {
    let (rows, cols) = (targets.len(), logits.len() / targets.len());
    assert_eq!(logits.len(), rows * cols, "logits of {rows} rows");
    (rows, cols)
}
