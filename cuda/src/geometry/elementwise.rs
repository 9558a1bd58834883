//! What goes element by element, and sums of squares.

use super::{BLOCK, Geometry};

/// The element-by-element kernels, `each` elements of a thread at once.
pub fn elementwise(n: usize, each: usize, processors: usize) -> Geometry {
    let blocks = n.div_ceil(each * BLOCK as usize).clamp(1, processors * 8);
    Geometry { grid: [blocks as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `squares`: one part a warp, as many as [`squares_parts`] says.
pub fn squares(n: usize) -> Geometry {
    // Not of the device's processors: the sum must not depend on the device.
    elementwise(n, 4, 128)
}

/// Parts that `squares` leaves of n elements.
pub fn squares_parts(n: usize) -> usize {
    let g = squares(n);
    (g.grid[0] * g.block / 32) as usize
}

/// `squares_total`: a warp a sum.
pub fn squares_total(sums: usize) -> Geometry {
    Geometry { grid: [sums as u32, 1, 1], block: 32, shared: 0 }
}
