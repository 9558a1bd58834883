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

sized! { RmsNorm: 96, RmsNormBwd: 104, SumRows: 40, SwiGlu: 40, Rope: 56, Round: 32, Add: 32, Copy: 32, SumSquares: 48 }

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
