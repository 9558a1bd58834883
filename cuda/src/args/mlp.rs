//! SwiGLU.

use super::{View, sized};

sized! { SwiGlu: 40 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SwiGlu {
    pub gate_up: View,
    pub y: View,
    pub rows: u32,
    pub f: u32,
}
