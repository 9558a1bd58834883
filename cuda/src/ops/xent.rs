//! Cross-entropy over the columns of the vocabulary that are held here.

use crate::args::{View, XentCombine, XentGrad, XentStats, XentTotals};
use crate::geometry;
use crate::kernels::{XENT_COMBINE, XENT_GRAD, XENT_STATS, XENT_TOTALS};
use crate::machine::{Done, Machine, launch};

/// stats `[C, 3]` of logits `[C, V]` and targets `[C]`; `first` is the id of the first column.
pub fn xent_stats(m: &dyn Machine, logits: View, targets: View, first: usize, stats: View) -> Done {
    let (rows, cols) = shape(logits, targets);
    assert_eq!(stats.len(), 3 * rows, "statistics of {rows} rows");
    let args = XentStats { logits, targets, stats, cols: cols as u32, first: first as u32 };
    // SAFETY: the views are held to rows x cols.
    unsafe { launch(m, XENT_STATS, &args, geometry::xent_stats(rows, cols)) }
}

/// combined `[C, 3]` of the ranks' statistics, rank after rank.
pub fn xent_combine(m: &dyn Machine, stats: View, combined: View) -> Done {
    let (rows, ranks) = (combined.len() / 3, stats.len() / combined.len());
    assert_eq!((combined.len(), stats.len()), (3 * rows, ranks * 3 * rows), "statistics of {rows} rows");
    let args = XentCombine { stats, combined, ranks: ranks as u32, rows: rows as u32 };
    // SAFETY: the views are held to the rows and ranks.
    unsafe { launch(m, XENT_COMBINE, &args, geometry::xent_combine(rows)) }
}

/// totals `[3]` += what stats `[C, 3]` and weights `[C]` give.
pub fn xent_totals(m: &dyn Machine, stats: View, weights: View, totals: View) -> Done {
    assert_eq!((stats.len(), totals.len()), (3 * weights.len(), 3), "totals of {} rows", weights.len());
    // SAFETY: the views are held to the rows.
    unsafe { launch(m, XENT_TOTALS, &XentTotals { stats, weights, totals }, geometry::xent_totals()) }
}

/// What the gradient of C rows needs beside their logits.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// `[C, 3]`, of the whole vocabulary.
    pub stats: View,
    pub targets: View,
    pub weights: View,
}

/// The gradient in the place of logits `[C, V]`; `first` is the id of the first column.
pub fn xent_grad(m: &dyn Machine, logits: View, of: Rows, first: usize, z_loss: f32) -> Done {
    let Rows { stats, targets, weights } = of;
    let (rows, cols) = shape(logits, targets);
    assert_eq!((stats.len(), weights.len()), (3 * rows, rows), "the gradient of {rows} rows");
    let (first, unused) = (first as u32, 0);
    let args = XentGrad { logits, stats, targets, weights, cols: cols as u32, first, z_loss, unused };
    // SAFETY: the views are held to rows x cols.
    unsafe { launch(m, XENT_GRAD, &args, geometry::xent_grad(rows, cols)) }
}

fn shape(logits: View, targets: View) -> (usize, usize) {
    let (rows, cols) = (targets.len(), logits.len() / targets.len());
    assert_eq!(logits.len(), rows * cols, "logits of {rows} rows");
    (rows, cols)
}
