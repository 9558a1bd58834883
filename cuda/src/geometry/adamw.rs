//! AdamW, and the factor that clips gradients.

use super::{Geometry, elementwise};

/// Sums of squares that `adamw_norms` leaves.
pub const NORMS: usize = 5;

/// `adamw_norms`: as many parts a sum as it has warps.
pub fn adamw_norms(n: usize) -> Geometry {
    // Not of the device's processors: the sums must not depend on the device.
    elementwise(n, 8, 128)
}

/// Parts that `adamw_norms` leaves of n elements.
pub fn adamw_parts(n: usize) -> usize {
    let g = adamw_norms(n);
    NORMS * (g.grid[0] * g.block / 32) as usize
}

/// `clip_factor`: one thread does it all.
pub fn clip_factor() -> Geometry {
    Geometry { grid: [1, 1, 1], block: 32, shared: 0 }
}
