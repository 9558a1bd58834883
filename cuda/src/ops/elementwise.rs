//! What goes element by element, and sums of squares.

use crate::args::{Add, Fill, Round, SumSquares, View};
use crate::geometry;
use crate::kernels::{ADD, FILL, ROUND, SQUARES, SQUARES_TOTAL};
use crate::machine::{Done, Machine, launch};

/// y (bf16) = x (f32) rounded.
pub fn round(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "rounding");
    // SAFETY: both views have one length.
    unsafe { launch(m, ROUND, &Round { x, y }, geometry::elementwise(x.len(), 8, m.processors())) }
}

/// x += y, both bf16.
pub fn add(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "a sum");
    // SAFETY: both views have one length.
    unsafe { launch(m, ADD, &Add { x, y }, geometry::elementwise(x.len(), 8, m.processors())) }
}

/// to = from, both f32.
pub fn copy(m: &dyn Machine, from: View, to: View) -> Done {
    assert_eq!(from.len(), to.len(), "a copy");
    // SAFETY: both views have one length.
    unsafe { launch(m, FILL, &Fill { from, to }, geometry::elementwise(to.len(), 4, m.processors())) }
}

/// to (f32) = 0.
pub fn zero(m: &dyn Machine, to: View) -> Done {
    // SAFETY: there is one view, and its own length is what the kernel goes by.
    unsafe { launch(m, FILL, &Fill { from: View::NONE, to }, geometry::elementwise(to.len(), 4, m.processors())) }
}

/// out `[1]` += the sum of squares of x, f32. `parts` is scratch of [`geometry::squares_parts`] f64.
pub fn sum_squares(m: &dyn Machine, x: View, out: View, parts: View) -> Done {
    assert_eq!((out.len(), parts.len()), (1, geometry::squares_parts(x.len())), "a sum of squares");
    let args = SumSquares { x, parts, out };
    // SAFETY: out has its one element, and parts one a warp.
    unsafe {
        launch(m, SQUARES, &args, geometry::squares(x.len()))?;
        launch(m, SQUARES_TOTAL, &args, geometry::squares_total())
    }
}
