//! The kernels' arguments, as `kernels/args.cuh` declares them; both assert the sizes. What launches a kernel
//! hands it a pointer to one of these. Shapes and meanings stand in that file.

/// `n` elements of the device's memory from the address `at` on.
#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy, PartialEq, Eq)]
pub struct View {
    pub at: u64,
    pub n: u64,
}

impl View {
    /// An argument that a kernel may do without.
    pub const NONE: View = View { at: 0, n: 0 };
}

/// The size that a struct has on the device.
macro_rules! sized {
    ($($args:ident: $bytes:literal),*) => {
        $(const _: () = assert!(size_of::<$args>() == $bytes, "as in args.cuh");)*
    };
}

sized! { RmsNorm: 96, RmsNormBwd: 104, SumRows: 40, SwiGlu: 40, Rope: 56, Round: 32, Add: 32, Copy: 32, SumSquares: 48, AdamW: 136 }

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct RmsNorm {
    pub x: View,
    pub h: View,
    pub w: View,
    pub y: View,
    pub rstd: View,
    pub rows: u32,
    pub d: u32,
    pub eps: f32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct RmsNormBwd {
    pub dres: View,
    pub dy: View,
    pub x: View,
    pub rstd: View,
    pub w: View,
    pub parts: View,
    pub rows: u32,
    pub d: u32,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct SumRows {
    pub parts: View,
    pub to: View,
    pub rows: u32,
    pub cols: u32,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct SwiGlu {
    pub gate_up: View,
    pub y: View,
    pub rows: u32,
    pub f: u32,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct Rope {
    pub qkv: View,
    pub table: View,
    pub rows: u32,
    pub cols: u32,
    pub heads: u32,
    pub dim: u32,
    pub seq: u32,
    pub sign: f32,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct Round {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct Add {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct Copy {
    pub from: View,
    pub to: View,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct SumSquares {
    pub x: View,
    pub parts: View,
    pub out: View,
}

#[repr(C)]
#[derive(Debug, Clone, std::marker::Copy)]
pub struct AdamW {
    pub g: View,
    pub factor: View,
    pub master: View,
    pub m: View,
    pub v: View,
    pub out: View,
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

/// AdamW's hyper-parameters, as the backend's contract has them.
#[derive(Debug, Clone, std::marker::Copy)]
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

impl Step {
    /// With the views of g, factor, master, m, v and the new weights.
    pub fn args(&self, [g, factor, master, m, v, out]: [View; 6]) -> AdamW {
        AdamW {
            g,
            factor,
            master,
            m,
            v,
            out,
            decayed: self.decayed as u64,
            beta1: self.beta1 as f32,
            fresh1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            fresh2: (1.0 - self.beta2) as f32,
            rate: self.lr / self.correction1,
            scale: 1.0 / self.correction2,
            eps: self.eps,
            decay: self.lr * self.weight_decay,
        }
    }
}
