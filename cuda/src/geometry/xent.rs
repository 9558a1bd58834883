//! Cross-entropy.

use super::{BLOCK, Geometry};

/// `xent_stats`: a block a row, with up to four vectors of eight a thread at once.
pub fn xent_stats(rows: usize, cols: usize) -> Geometry {
    let block = (cols.div_ceil(32).next_multiple_of(32) as u32).min(512);
    Geometry { grid: [rows as u32, 1, 1], block, shared: 256 }
}

/// `xent_grad`: the same blocks.
pub fn xent_grad(rows: usize, cols: usize) -> Geometry {
    Geometry { shared: 0, ..xent_stats(rows, cols) }
}

/// `xent_combine`: a thread a row.
pub fn xent_combine(rows: usize) -> Geometry {
    Geometry { grid: [rows.div_ceil(BLOCK as usize).max(1) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `xent_totals`: one block.
pub fn xent_totals() -> Geometry {
    Geometry { grid: [1, 1, 1], block: BLOCK, shared: 768 }
}
