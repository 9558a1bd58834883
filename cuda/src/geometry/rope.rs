//! Rotary positions.

use super::{BLOCK, Geometry};

/// `rope`: a block a row.
pub fn rope(rows: usize, heads: usize, dim: usize) -> Geometry {
    let items = heads * (dim / 2).div_ceil(8);
    Geometry { grid: [rows as u32, 1, 1], block: (items.next_multiple_of(32) as u32).clamp(32, BLOCK), shared: 0 }
}
