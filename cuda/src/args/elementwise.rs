//! What goes element by element, and sums of squares.

use super::{View, sized};

sized! { Round: 32, Widen: 32, Add: 32, Fill: 32, SumSquares: 48 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Widen {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Add {
    pub x: View,
    pub y: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    pub from: View,
    pub to: View,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SumSquares {
    pub x: View,
    pub parts: View,
    pub out: View,
}
