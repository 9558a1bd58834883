//! Rotary positions.

use super::{View, sized};

sized! { Rope: 56 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
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
