//! SwiGLU, and what all products with a gate share.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    SWIGLU_CU = "swiglu.cu" {
        SWIGLU = "swiglu": Gated;
        SWIGLU_BWD = "swiglu_bwd": Gated;
    }
}

sized! { Gated: 40 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Gated {
    pub gate_up: View,
    pub y: View,
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

/// Runs a kernel of gate_up `[T, 2F]` and y `[T, F]`.
pub(super) fn gated(m: &dyn Machine, kernel: Kernel<Gated>, gate_up: View, y: View, f: usize) -> Done {
    let rows = y.len() / f;
    assert_eq!((y.len(), gate_up.len()), (rows * f, 2 * rows * f), "a gated product of {rows} x {f}");
    // SAFETY: the views are checked against rows x f.
    unsafe { launch(m, kernel, &Gated { gate_up, y, rows: rows as u32, f: f as u32 }, gated_geometry(rows, f)) }
}
