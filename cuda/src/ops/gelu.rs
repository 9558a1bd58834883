//! GELU in its tanh form, and GeGLU.

use super::{BLOCK, Gated, gated};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    GELU_CU = "gelu.cu" {
        GEGLU = "geglu": Gated;
        GEGLU_BWD = "geglu_bwd": Gated;
        GELU = "gelu": Gelu;
        GELU_BWD = "gelu_bwd": Gelu;
    }
}

sized! { Gelu: 32 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Gelu {
    pub x: View,
    pub y: View,
}

/// `gelu` and `gelu_bwd`: eight elements per thread.
pub(super) fn gelu_geometry(n: usize) -> Geometry {
    Geometry { grid: [n.div_ceil(8 * BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// y `[T, F]` = gelu(gate) * up of gate_up `[T, 2F]`.
pub fn geglu(m: &dyn Machine, gate_up: View, y: View, f: usize) -> Done {
    gated(m, GEGLU, gate_up, y, f)
}

/// Overwrites gate_up with `[dgate | dup]`, from dy `[T, F]`.
pub fn geglu_bwd(m: &dyn Machine, dy: View, gate_up: View, f: usize) -> Done {
    gated(m, GEGLU_BWD, gate_up, dy, f)
}

/// y = gelu(x).
pub fn gelu(m: &dyn Machine, x: View, y: View) -> Done {
    plain(m, GELU, x, y)
}

/// Overwrites x with dx, from dy.
pub fn gelu_bwd(m: &dyn Machine, dy: View, x: View) -> Done {
    plain(m, GELU_BWD, x, dy)
}

fn plain(m: &dyn Machine, kernel: Kernel<Gelu>, x: View, y: View) -> Done {
    assert_eq!(x.len(), y.len(), "elements of GELU");
    // SAFETY: both views have the same length.
    unsafe { launch(m, kernel, &Gelu { x, y }, gelu_geometry(x.len())) }
}
