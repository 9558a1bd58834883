//! Cross-entropy.

use super::{View, sized};

sized! { XentStats: 56, XentCombine: 40, XentTotals: 48, XentGrad: 80 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentStats {
    pub logits: View,
    pub targets: View,
    pub stats: View,
    pub cols: u32,
    pub first: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentCombine {
    pub stats: View,
    pub combined: View,
    pub ranks: u32,
    pub rows: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentTotals {
    pub stats: View,
    pub weights: View,
    pub totals: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct XentGrad {
    pub logits: View,
    pub stats: View,
    pub targets: View,
    pub weights: View,
    pub cols: u32,
    pub first: u32,
    pub z_loss: f32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: u32,
}
