//! SwiGLU.

use crate::args::{SwiGlu, View};
use crate::geometry;
use crate::kernels::{Kernel, SWIGLU, SWIGLU_BWD};
use crate::machine::{Done, Machine, launch};

/// y `[T, F]` of gate_up `[T, 2F]`.
pub fn swiglu(m: &dyn Machine, gate_up: View, y: View, f: usize) -> Done {
    run(m, SWIGLU, gate_up, y, f)
}

/// `[dgate | dup]` in the place of gate_up, from dy `[T, F]`.
pub fn swiglu_bwd(m: &dyn Machine, dy: View, gate_up: View, f: usize) -> Done {
    run(m, SWIGLU_BWD, gate_up, dy, f)
}

fn run(m: &dyn Machine, kernel: Kernel<SwiGlu>, gate_up: View, y: View, f: usize) -> Done {
    let rows = y.len() / f;
    assert_eq!((y.len(), gate_up.len()), (rows * f, 2 * rows * f), "SwiGLU of {rows} x {f}");
    // SAFETY: the views are held to rows x f.
    unsafe { launch(m, kernel, &SwiGlu { gate_up, y, rows: rows as u32, f: f as u32 }, geometry::swiglu(rows, f)) }
}
