//! SwiGLU, also with the clamped gate of GPT-OSS, and what all products with a gate share.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    SWIGLU_CU = "swiglu.cu" {
        SWIGLU = "swiglu": Gated;
        SWIGLU_BWD = "swiglu_bwd": Gated;
        SWIGLU_WEIGHTED = "swiglu_weighted": GatedWeighted;
        SWIGLU_WEIGHTED_BWD = "swiglu_weighted_bwd": GatedWeighted;
        CLAMPED_SWIGLU_WEIGHTED = "clamped_swiglu_weighted": GatedWeighted;
        CLAMPED_SWIGLU_WEIGHTED_BWD = "clamped_swiglu_weighted_bwd": GatedWeighted;
    }
}

sized! { Gated: 40, GatedWeighted: 72 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Gated {
    pub gate_up: View,
    pub y: View,
    pub rows: u32,
    pub f: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GatedWeighted {
    pub gate_up: View,
    pub y: View,
    pub weights: View,
    pub dweights: View,
    pub rows: u32,
    pub f: u32,
}

/// Products with a gate: (row, part of the row).
pub(super) fn gated_geometry(rows: usize, f: usize) -> Geometry {
    let block = (f.div_ceil(8).next_multiple_of(32) as u32).min(BLOCK);
    Geometry { grid: [rows as u32, f.div_ceil(8 * block as usize) as u32, 1], block, shared: 0 }
}

/// y `[T, F]` = silu(gate) * up of gate_up `[T, 2F]`.
pub fn swiglu(m: &dyn Machine, gate_up: View, y: View, f: usize) -> Done {
    gated(m, SWIGLU, gate_up, y, f)
}

/// Overwrites gate_up with `[dgate | dup]`, from dy `[T, F]`.
pub fn swiglu_bwd(m: &dyn Machine, dy: View, gate_up: View, f: usize) -> Done {
    gated(m, SWIGLU_BWD, gate_up, dy, f)
}

/// `swiglu_weighted_bwd` and the clamped one: a block for each row.
pub(super) fn weighted_bwd_geometry(rows: usize, f: usize) -> Geometry {
    let Geometry { block, .. } = gated_geometry(rows, f);
    Geometry { grid: [rows as u32, 1, 1], block, shared: 128 }
}

/// y `[R, F]` = weight * silu(gate) * up of gate_up `[R, 2F]`, with weights `[R]`.
pub fn swiglu_weighted(m: &dyn Machine, gate_up: View, weights: View, y: View, f: usize) -> Done {
    forward(m, SWIGLU_WEIGHTED, gate_up, weights, y, f)
}

/// The same of clamped gates and values: y = weight * (up + 1) gate sigmoid(1.702 gate).
pub fn clamped_swiglu_weighted(m: &dyn Machine, gate_up: View, weights: View, y: View, f: usize) -> Done {
    forward(m, CLAMPED_SWIGLU_WEIGHTED, gate_up, weights, y, f)
}

fn forward(m: &dyn Machine, kernel: Kernel<GatedWeighted>, gate_up: View, weights: View, y: View, f: usize) -> Done {
    let rows = weights.len();
    let args = GatedWeighted { gate_up, y, weights, dweights: View::NONE, rows: rows as u32, f: f as u32 };
    weighted(m, kernel, &args, gated_geometry(rows, f))
}

/// Overwrites gate_up with `[dgate | dup]`, from dy `[R, F]`, and writes dweights `[R]`; `of_rows` are weights and
/// dweights.
pub fn swiglu_weighted_bwd(m: &dyn Machine, dy: View, gate_up: View, of_rows: [View; 2], f: usize) -> Done {
    backward(m, SWIGLU_WEIGHTED_BWD, dy, gate_up, of_rows, f)
}

/// The same of [`clamped_swiglu_weighted`].
pub fn clamped_swiglu_weighted_bwd(m: &dyn Machine, dy: View, gate_up: View, of_rows: [View; 2], f: usize) -> Done {
    backward(m, CLAMPED_SWIGLU_WEIGHTED_BWD, dy, gate_up, of_rows, f)
}

fn backward(
    m: &dyn Machine,
    kernel: Kernel<GatedWeighted>,
    dy: View,
    gate_up: View,
    [weights, dweights]: [View; 2],
    f: usize,
) -> Done {
    let rows = weights.len();
    assert_eq!(dweights.len(), rows, "gradients of weights");
    let args = GatedWeighted { gate_up, y: dy, weights, dweights, rows: rows as u32, f: f as u32 };
    weighted(m, kernel, &args, weighted_bwd_geometry(rows, f))
}

fn weighted(m: &dyn Machine, kernel: Kernel<GatedWeighted>, args: &GatedWeighted, geometry: Geometry) -> Done {
    let (rows, f) = (args.rows as usize, args.f as usize);
    assert_eq!((args.y.len(), args.gate_up.len()), (rows * f, 2 * rows * f), "a gated product of {rows} x {f}");
    if rows == 0 {
        return Ok(());
    }
    // SAFETY: the views are checked against rows x f.
    unsafe { launch(m, kernel, args, geometry) }
}

/// Runs a kernel of gate_up `[T, 2F]` and y `[T, F]`.
pub(super) fn gated(m: &dyn Machine, kernel: Kernel<Gated>, gate_up: View, y: View, f: usize) -> Done {
    let rows = y.len() / f;
    assert_eq!((y.len(), gate_up.len()), (rows * f, 2 * rows * f), "a gated product of {rows} x {f}");
    // SAFETY: the views are checked against rows x f.
    unsafe { launch(m, kernel, &Gated { gate_up, y, rows: rows as u32, f: f as u32 }, gated_geometry(rows, f)) }
}
