//! SwiGLU.

use super::{BLOCK, Geometry};

/// `swiglu` and `swiglu_bwd`: (row, piece of the row).
pub fn swiglu(rows: usize, f: usize) -> Geometry {
    let block = (f.div_ceil(8).next_multiple_of(32) as u32).min(BLOCK);
    Geometry { grid: [rows as u32, f.div_ceil(8 * block as usize) as u32, 1], block, shared: 0 }
}
