//! AdamW on a shard.

use crate::args::{Step, View};
use crate::geometry;
use crate::kernels::ADAMW;
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
    let n = g.len();
    assert_eq!([s.master.len(), s.m.len(), s.v.len(), out.len(), factor.len()], [n, n, n, n, 2], "a step of AdamW");
    let args = step.args([g, factor, s.master, s.m, s.v, out]);
    // SAFETY: all views have one length, and factor its two numbers.
    unsafe { launch(m, ADAMW, &args, geometry::elementwise(n, 4, m.processors())) }
}
