//! RMSNorm.

use super::{View, sized};

sized! { RmsNorm: 96, RmsNormBwd: 104, SumRows: 40 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
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
#[derive(Debug, Clone, Copy)]
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
#[derive(Debug, Clone, Copy)]
pub struct SumRows {
    pub parts: View,
    pub to: View,
    pub rows: u32,
    pub cols: u32,
}
