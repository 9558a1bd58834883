//! What goes element by element, and sums of squares.

use crate::args::{Add, Fill, Round, SumSquares, View, Widen};
use crate::geometry;
use crate::kernels::{ADD, FILL, ROUND, SQUARES, SQUARES_TOTAL, WIDEN};
use crate::machine::{Done, Machine, launch};
use std::ops::Range;

/// y (bf16) = x (f32) rounded.
pub fn round(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "rounding");
    // SAFETY: both views have one length.
    unsafe { launch(m, ROUND, &Round { x, y }, geometry::elementwise(x.len(), 8, m.processors())) }
}

/// y (f32) = x (bf16).
pub fn widen(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "widening");
    // SAFETY: both views have one length.
    unsafe { launch(m, WIDEN, &Widen { x, y }, geometry::elementwise(x.len(), 8, m.processors())) }
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

/// part = the elements `ranges` of x one after another, f32. A launch a range: a bucket has a few at most.
pub fn pick(m: &dyn Machine, x: View, ranges: &[Range<usize>], part: View) -> Done {
    places(ranges, part).try_for_each(|(range, part)| copy(m, x.part::<f32>(range), part))
}

/// x holds `part` at `ranges`.
pub fn put(m: &dyn Machine, part: View, ranges: &[Range<usize>], x: View) -> Done {
    places(ranges, part).try_for_each(|(range, part)| copy(m, part, x.part::<f32>(range)))
}

/// Each range, and where it lies in `part`.
fn places(ranges: &[Range<usize>], part: View) -> impl Iterator<Item = (Range<usize>, View)> {
    assert_eq!(part.len(), ranges.iter().map(Range::len).sum::<usize>(), "elements of {ranges:?}");
    ranges.iter().scan(0, move |end, range| {
        let start = *end;
        *end += range.len();
        Some((range.clone(), part.part::<f32>(start..*end)))
    })
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
        launch(m, SQUARES_TOTAL, &args, geometry::squares_total(1))
    }
}
