//! AdamW on a shard, with the squared norms that a run may log, and the judgement of a step.

use super::elementwise::{SQUARES_TOTAL, SumSquares, elementwise_geometry, squares_total_geometry};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;
use engine::backend::{Rule, Total};

kernels! {
    ADAMW_CU = "adamw.cu" {
        ADAMW = "adamw": AdamW;
        ADAMW_NORMS = "adamw_norms": AdamW;
        JUDGE = "judge": Judge;
    }
}

sized! { AdamW: 152, Judge: 80 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    pub g: View,
    pub factor: View,
    pub master: View,
    pub m: View,
    pub v: View,
    pub out: View,
    pub parts: View,
    pub decayed: u64,
    pub beta1: f32,
    pub fresh1: f32,
    pub beta2: f32,
    pub fresh2: f32,
    pub rate: f32,
    pub scale: f32,
    pub eps: f32,
    pub decay: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Judge {
    pub square: View,
    pub totals: View,
    pub state: View,
    pub out: View,
    pub clip: f32,
    pub threshold: f32,
    pub window: u32,
    pub skips: u32,
}

/// Squared norms that `adamw_norms` computes.
pub const NORMS: usize = 5;

/// `adamw_norms`: one partial sum per warp and norm.
pub(super) fn adamw_norms_geometry(n: usize) -> Geometry {
    // A constant instead of the device's multiprocessors: the sums must not depend on the device.
    elementwise_geometry(n, 8, 128)
}

/// Partial sums that `adamw_norms` writes for n elements.
pub fn adamw_parts(n: usize) -> usize {
    let g = adamw_norms_geometry(n);
    NORMS * (g.grid[0] * g.block / 32) as usize
}

/// `judge`: a single thread does the work.
pub(super) fn judge_geometry() -> Geometry {
    Geometry { grid: [1, 1, 1], block: 32, shared: 0 }
}

/// The hyper-parameters of a step, as in [`engine::backend::AdamW`].
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub lr: f32,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f32,
    pub weight_decay: f32,
    pub correction1: f32,
    pub correction2: f32,
    pub decayed: usize,
}

/// A shard's f32 state, all of one length.
#[derive(Debug, Clone, Copy)]
pub struct State {
    pub master: View,
    pub m: View,
    pub v: View,
}

/// One step: scales g by `factor[1]`, updates the state, and writes the new weights to `out`, rounded to bf16; nothing
/// if the factor is NaN.
pub fn adamw(m: &dyn Machine, g: View, factor: View, s: State, out: View, step: Step) -> Done {
    let args = args(g, factor, s, out, View::NONE, step);
    // SAFETY: `args` checks that all views have one length.
    unsafe { launch(m, ADAMW, &args, elementwise_geometry(g.len(), 4, m.processors())) }
}

/// Squared norms of a shard.
#[derive(Debug, Clone, Copy)]
pub struct Norms {
    /// `[5]` f32, accumulated: of the scaled gradients, the new weights, their change, and the new m and v.
    pub squares: View,
    /// Scratch of [`adamw_parts`] f64.
    pub parts: View,
}

/// [`adamw`], with the squared norms.
pub fn adamw_norms(m: &dyn Machine, g: View, factor: View, s: State, out: View, step: Step, norms: Norms) -> Done {
    let (n, Norms { squares, parts }) = (g.len(), norms);
    assert_eq!((squares.len(), parts.len()), (NORMS, adamw_parts(n)), "norms of a step of AdamW");
    let args = args(g, factor, s, out, parts, step);
    let total = SumSquares { x: View::NONE, parts, out: squares };
    // SAFETY: `args` checks that all views have one length; the partial sums are checked just above.
    unsafe {
        launch(m, ADAMW_NORMS, &args, adamw_norms_geometry(n))?;
        launch(m, SQUARES_TOTAL, &total, squares_total_geometry(NORMS))
    }
}

fn args(g: View, factor: View, s: State, out: View, parts: View, step: Step) -> AdamW {
    let (n, State { master, m, v }) = (g.len(), s);
    assert_eq!([master.len(), m.len(), v.len(), out.len(), factor.len()], [n, n, n, n, 3], "a step of AdamW");
    AdamW {
        g,
        factor,
        master,
        m,
        v,
        out,
        parts,
        decayed: step.decayed as u64,
        beta1: step.beta1 as f32,
        fresh1: (1.0 - step.beta1) as f32,
        beta2: step.beta2 as f32,
        fresh2: (1.0 - step.beta2) as f32,
        rate: step.lr / step.correction1,
        scale: 1.0 / step.correction2,
        eps: step.eps,
        decay: step.lr * step.weight_decay,
    }
}

/// out `[3]` = (the norm of the mean gradient, the factor that scales and clips the summed gradients, the judgement),
/// from their squared norm `[1]`, the loss totals and the last accepted steps, `state`; see
/// [`engine::backend::Backend::judge`].
pub fn judge(m: &dyn Machine, square: View, totals: View, state: View, rule: Rule, out: View) -> Done {
    assert_eq!((square.len(), totals.len(), out.len()), (1, Total::COUNT, 3), "a judgement");
    assert_eq!(state.len(), Rule::state_len(rule.window), "the last accepted steps");
    let Rule { clip, threshold, window, skips } = rule;
    let args = Judge { square, totals, state, out, clip, threshold, window: window as u32, skips: skips.into() };
    // SAFETY: the lengths are checked just above.
    unsafe { launch(m, JUDGE, &args, judge_geometry()) }
}
