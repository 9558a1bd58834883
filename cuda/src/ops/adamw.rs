//! AdamW on a shard, with the sums that a run may log, and the factor that clips gradients.

use crate::args::{AdamW, Clip, Step, SumSquares, View};
use crate::geometry;
use crate::kernels::{ADAMW, ADAMW_NORMS, CLIP_FACTOR, SQUARES_TOTAL};
use crate::machine::{Done, Machine, launch};

/// A shard's f32 state, all of one length.
#[derive(Debug, Clone, Copy)]
pub struct State {
    pub master: View,
    pub m: View,
    pub v: View,
}

/// One step: g is scaled by `factor[1]`; the new weights come out rounded to bf16.
pub fn adamw(m: &dyn Machine, g: View, factor: View, s: State, out: View, step: Step) -> Done {
    let args = args(g, factor, s, out, View::NONE, step);
    // SAFETY: `args` holds all views to one length.
    unsafe { launch(m, ADAMW, &args, geometry::elementwise(g.len(), 8, m.processors())) }
}

/// Sums of squares of a shard.
#[derive(Debug, Clone, Copy)]
pub struct Norms {
    /// `[5]` of f32, added to: of the scaled gradients, the new weights, their change, and the new m and v.
    pub squares: View,
    /// Scratch of [`geometry::adamw_parts`] f64.
    pub parts: View,
}

/// The same step, and its sums of squares.
pub fn adamw_norms(m: &dyn Machine, g: View, factor: View, s: State, out: View, step: Step, norms: Norms) -> Done {
    let (n, Norms { squares, parts }) = (g.len(), norms);
    assert_eq!((squares.len(), parts.len()), (geometry::NORMS, geometry::adamw_parts(n)), "norms of a step of AdamW");
    let args = args(g, factor, s, out, parts, step);
    let total = SumSquares { x: View::NONE, parts, out: squares };
    // SAFETY: `args` holds all views to one length, and the parts to those of the launch just above.
    unsafe {
        launch(m, ADAMW_NORMS, &args, geometry::adamw_norms(n))?;
        launch(m, SQUARES_TOTAL, &total, geometry::squares_total(geometry::NORMS))
    }
}

fn args(g: View, factor: View, s: State, out: View, parts: View, step: Step) -> AdamW {
    let n = g.len();
    assert_eq!([s.master.len(), s.m.len(), s.v.len(), out.len(), factor.len()], [n, n, n, n, 2], "a step of AdamW");
    step.args([g, factor, s.master, s.m, s.v, out, parts])
}

/// out `[2]` = (norm of the mean's gradient, factor of the summed gradients), of the squared norm `[1]` of the summed
/// gradients and the loss's totals `[3]`.
pub fn clip_factor(m: &dyn Machine, square: View, totals: View, clip: f32, out: View) -> Done {
    assert_eq!((square.len(), totals.len(), out.len()), (1, 3, 2), "a factor that clips");
    // SAFETY: the views are held to their few numbers.
    unsafe { launch(m, CLIP_FACTOR, &Clip { square, totals, out, clip, unused: 0 }, geometry::clip_factor()) }
}
