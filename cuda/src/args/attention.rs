//! Attention; the structs stand in `kernels/args_attention.cuh`.

use super::{View, sized};

sized! { Attention: 80, AttentionBwd: 144 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub qkv: View,
    pub starts: View,
    pub o: View,
    pub lse: View,
    pub seq: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// Fills the struct to a multiple of eight bytes.
    pub unused: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AttentionBwd {
    pub qkv: View,
    pub do_: View,
    pub o: View,
    pub starts: View,
    pub lse: View,
    pub dqkv: View,
    pub stats: View,
    pub sums: View,
    pub seq: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub parts: u32,
}
