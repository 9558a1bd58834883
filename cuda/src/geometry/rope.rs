//! Rotary positions.

use super::{BLOCK, Geometry};

/// `rope`: a thread for every eight pairs of a head of a row.
pub fn rope(rows: usize, heads: usize, dim: usize) -> Geometry {
    let items = rows * heads * (dim / 2).div_ceil(8);
    assert!(items < 1 << 31, "rotary positions of {rows} rows with {heads} heads of {dim}");
    Geometry { grid: [items.div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}
