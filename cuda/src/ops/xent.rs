//! Cross-entropy over this rank's shard of the vocabulary.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;
use engine::backend::{Total, Xent};

kernels! {
    XENT_CU = "xent.cu" {
        XENT_STATS = "xent_stats": XentStats;
        XENT_STATS_CAPPED = "xent_stats_capped": XentStats;
        XENT_COMBINE = "xent_combine": XentCombine;
        XENT_TOTALS = "xent_totals": XentTotals;
        XENT_GRAD = "xent_grad": XentGrad;
        XENT_GRAD_CAPPED = "xent_grad_capped": XentGrad;
    }
}

sized! { XentStats: 64, XentCombine: 40, XentTotals: 48, XentGrad: 80 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentStats {
    pub logits: View,
    pub targets: View,
    pub stats: View,
    pub cols: u32,
    pub first: u32,
    pub cap: f32,
    pub padding: u32,
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
    pub cap: f32,
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

/// stats `[C, 3]` of logits `[C, V]` and targets `[C]`.
pub fn xent_stats(m: &dyn Machine, logits: View, targets: View, x: Xent, stats: View) -> Done {
    let (rows, cols) = shape(logits, targets);
    assert_eq!(stats.len(), 3 * rows, "statistics of {rows} rows");
    let (kernel, cap) = x.cap.map_or((XENT_STATS, 0.0), |cap| (XENT_STATS_CAPPED, cap));
    let args = XentStats { logits, targets, stats, cols: cols as u32, first: x.first as u32, cap, padding: 0 };
    // SAFETY: the views are checked against rows x cols.
    unsafe { launch(m, kernel, &args, xent_stats_geometry(rows, cols)) }
}

/// Combines the statistics `[ranks, C, 3]` of the vocabulary's shards into `combined` `[C, 3]`.
pub fn xent_combine(m: &dyn Machine, stats: View, combined: View) -> Done {
    let (rows, ranks) = (combined.len() / 3, stats.len() / combined.len());
    assert_eq!((combined.len(), stats.len()), (3 * rows, ranks * 3 * rows), "statistics of {rows} rows");
    let args = XentCombine { stats, combined, ranks: ranks as u32, rows: rows as u32 };
    // SAFETY: the views are checked against rows and ranks.
    unsafe { launch(m, XENT_COMBINE, &args, xent_combine_geometry(rows)) }
}

/// Accumulates the loss totals `[1, Total::COUNT]` of stats `[C, 3]` and weights `[C]`.
pub fn xent_totals(m: &dyn Machine, stats: View, weights: View, totals: View) -> Done {
    assert_eq!((stats.len(), totals.len()), (3 * weights.len(), Total::COUNT), "totals of {} rows", weights.len());
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

/// Overwrites logits `[C, V]` with their gradient.
pub fn xent_grad(m: &dyn Machine, logits: View, inputs: Rows, x: Xent) -> Done {
    let Rows { stats, targets, weights } = inputs;
    let (rows, cols) = shape(logits, targets);
    assert_eq!((stats.len(), weights.len()), (3 * rows, rows), "the gradient of {rows} rows");
    let (kernel, cap) = x.cap.map_or((XENT_GRAD, 0.0), |cap| (XENT_GRAD_CAPPED, cap));
    let (first, z_loss) = (x.first as u32, x.z_loss);
    let args = XentGrad { logits, stats, targets, weights, cols: cols as u32, first, z_loss, cap };
    // SAFETY: the views are checked against rows x cols.
    unsafe { launch(m, kernel, &args, xent_grad_geometry(rows, cols)) }
}

fn shape(logits: View, targets: View) -> (usize, usize) {
    let (rows, cols) = (targets.len(), logits.len() / targets.len());
    assert_eq!(logits.len(), rows * cols, "logits of {rows} rows");
    (rows, cols)
}
