//! The embedding.

use super::{View, sized};

sized! { Embed: 64, EmbedSort: 72, EmbedBwd: 88 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    pub ids: View,
    pub table: View,
    pub y: View,
    pub first: u32,
    pub held: u32,
    pub d: u32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EmbedSort {
    pub ids: View,
    pub keys: View,
    pub rows: View,
    pub tokens: View,
    pub first: u32,
    pub held: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EmbedBwd {
    pub rows: View,
    pub tokens: View,
    pub dy: View,
    pub dtable: View,
    pub parts: View,
    pub d: u32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: u32,
}
