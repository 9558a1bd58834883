//! RMSNorm: a block a row, or a block walking over rows.

use super::{BLOCK, Geometry};

/// Columns that the kernels of RMSNorm take: 1024 threads with two vectors of eight in registers.
pub const NORM_COLUMNS: usize = 16384;

/// Columns up to which `rmsnorm_bwd` goes; `rmsnorm_bwd_long` takes the rest.
pub const NORM_BWD_COLUMNS: usize = 8192;

/// Whole warps with `each` columns a thread.
fn norm_block(d: usize, each: usize) -> u32 {
    assert!(d > 0 && d <= NORM_COLUMNS, "RMSNorm over {d} columns, more than {NORM_COLUMNS}");
    (d.div_ceil(each).next_multiple_of(32)) as u32
}

/// `rmsnorm` and `rmsnorm_recompute`: a block a row.
pub fn rmsnorm(rows: usize, d: usize) -> Geometry {
    Geometry { grid: [rows as u32, 1, 1], block: norm_block(d, 16), shared: 128 }
}

/// `rmsnorm_bwd` and `rmsnorm_bwd_long`: as many blocks as run at once on `processors`; each leaves a row of parts.
pub fn rmsnorm_bwd(rows: usize, d: usize, processors: usize) -> Geometry {
    let block = norm_block(d, if d > NORM_BWD_COLUMNS { 32 } else { 16 });
    // With up to 83 registers a thread, 768 threads fit on a processor.
    let at_once = processors * (768 / block as usize).clamp(1, 6);
    Geometry { grid: [rows.min(at_once) as u32, 1, 1], block, shared: 256 }
}

/// Elements of f32 that `rmsnorm_bwd` leaves for `sum_rows`.
pub fn norm_parts(rows: usize, d: usize, processors: usize) -> usize {
    rmsnorm_bwd(rows, d, processors).grid[0] as usize * d
}

/// `sum_rows`: 32 columns a block.
pub fn sum_rows(cols: usize) -> Geometry {
    Geometry { grid: [cols.div_ceil(32) as u32, 1, 1], block: BLOCK, shared: 1024 }
}
