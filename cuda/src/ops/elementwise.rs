//! Elementwise kernels (casts, adds, copies), and sums of squares.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;
use engine::backend::{CHECKSUM_PARTS, Elem};
use std::ops::Range;

kernels! {
    ELEMENTWISE_CU = "elementwise.cu" {
        ROUND = "round_bf16": Round;
        WIDEN = "widen_bf16": Widen;
        ADD = "add_bf16": Add;
        SCALE = "scale_bf16": Scale;
        FILL = "copy_f32": Fill;
        SQUARES = "squares": SumSquares;
        pub(super) SQUARES_TOTAL = "squares_total": SumSquares;
        CHECKSUM = "checksum_f32": Checksum;
        CHECKSUM_BF16 = "checksum_bf16": Checksum;
    }
}

sized! { Round: 32, Widen: 32, Add: 32, Scale: 24, Fill: 32, SumSquares: 48, Checksum: 32 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Widen {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Add {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub x: View,
    pub factor: f32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    pub from: View,
    pub to: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SumSquares {
    pub x: View,
    pub parts: View,
    pub out: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Checksum {
    pub x: View,
    pub parts: View,
}

/// The elementwise kernels, `each` elements per thread at once.
pub(super) fn elementwise_geometry(n: usize, each: usize, processors: usize) -> Geometry {
    let blocks = n.div_ceil(each * BLOCK as usize).clamp(1, processors * 8);
    Geometry { grid: [blocks as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `squares`: one partial sum per warp.
pub(super) fn squares_geometry(n: usize) -> Geometry {
    // A constant instead of the device's multiprocessors: the sum must not depend on the device.
    elementwise_geometry(n, 4, 128)
}

/// Partial sums that `squares` writes for n elements.
pub fn squares_parts(n: usize) -> usize {
    let g = squares_geometry(n);
    (g.grid[0] * g.block / 32) as usize
}

/// The checksums: one part per warp.
pub(super) fn checksum_geometry() -> Geometry {
    Geometry { grid: [(CHECKSUM_PARTS * 32) as u32 / BLOCK, 1, 1], block: BLOCK, shared: 0 }
}

/// `squares_total`: one warp per sum.
pub(super) fn squares_total_geometry(sums: usize) -> Geometry {
    Geometry { grid: [sums as u32, 1, 1], block: 32, shared: 0 }
}

/// y (bf16) = x (f32) rounded.
pub fn round(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "rounding");
    // SAFETY: both views have the same length.
    unsafe { launch(m, ROUND, &Round { x, y }, elementwise_geometry(x.len(), 8, m.processors())) }
}

/// y (f32) = x (bf16).
pub fn widen(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "widening");
    // SAFETY: both views have the same length.
    unsafe { launch(m, WIDEN, &Widen { x, y }, elementwise_geometry(x.len(), 4, m.processors())) }
}

/// x += y, both bf16.
pub fn add(m: &dyn Machine, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "a sum");
    // SAFETY: both views have the same length.
    unsafe { launch(m, ADD, &Add { x, y }, elementwise_geometry(x.len(), 8, m.processors())) }
}

/// x (bf16) *= factor.
pub fn scale(m: &dyn Machine, x: View, factor: f32) -> Done {
    let args = Scale { x, factor, padding: 0 };
    // SAFETY: the kernel goes by the length of its only view.
    unsafe { launch(m, SCALE, &args, elementwise_geometry(x.len(), 8, m.processors())) }
}

/// to = from, both f32.
pub fn copy(m: &dyn Machine, from: View, to: View) -> Done {
    assert_eq!(from.len(), to.len(), "a copy");
    // SAFETY: both views have the same length.
    unsafe { launch(m, FILL, &Fill { from, to }, elementwise_geometry(to.len(), 4, m.processors())) }
}

/// Gathers the `ranges` of x (f32) into `part`, one after another. One launch per range: a bucket has few ranges.
pub fn pick(m: &dyn Machine, x: View, ranges: &[Range<usize>], part: View) -> Done {
    slices(ranges, part).try_for_each(|(range, part)| copy(m, x.part::<f32>(range), part))
}

/// Scatters `part` back to the `ranges` of x.
pub fn put(m: &dyn Machine, part: View, ranges: &[Range<usize>], x: View) -> Done {
    slices(ranges, part).try_for_each(|(range, part)| copy(m, part, x.part::<f32>(range)))
}

/// Each range with its slice of `part`.
fn slices(ranges: &[Range<usize>], part: View) -> impl Iterator<Item = (Range<usize>, View)> {
    assert_eq!(part.len(), ranges.iter().map(Range::len).sum::<usize>(), "elements of {ranges:?}");
    ranges.iter().scan(0, move |end, range| {
        let start = *end;
        *end += range.len();
        Some((range.clone(), part.part::<f32>(start..*end)))
    })
}

/// to (f32) = 0.
pub fn zero(m: &dyn Machine, to: View) -> Done {
    // SAFETY: the kernel goes by the length of its only view.
    unsafe { launch(m, FILL, &Fill { from: View::NONE, to }, elementwise_geometry(to.len(), 4, m.processors())) }
}

/// parts `[CHECKSUM_PARTS]` (u32) = those of the checksum of x, whose elements are `T`.
pub fn checksum<T: Elem>(m: &dyn Machine, x: View, parts: View) -> Done {
    assert_eq!(parts.len(), CHECKSUM_PARTS, "parts of a checksum");
    let kernel = if size_of::<T>() == 2 { CHECKSUM_BF16 } else { CHECKSUM };
    // SAFETY: each warp has a part of its own.
    unsafe { launch(m, kernel, &Checksum { x, parts }, checksum_geometry()) }
}

/// out `[1]` += the sum of squares of x (f32). `parts` is scratch of [`squares_parts`] f64.
pub fn sum_squares(m: &dyn Machine, x: View, out: View, parts: View) -> Done {
    assert_eq!((out.len(), parts.len()), (1, squares_parts(x.len())), "a sum of squares");
    let args = SumSquares { x, parts, out };
    // SAFETY: `out` has one element, and `parts` one per warp.
    unsafe {
        launch(m, SQUARES, &args, squares_geometry(x.len()))?;
        launch(m, SQUARES_TOTAL, &args, squares_total_geometry(1))
    }
}
