//! Attention for sm_90a; the structs stand in `kernels/args_sm90.cuh`.

use super::{View, sized};
use crate::tensor::TensorMap;

sized! { AttentionTiles: 256, AttentionTilesBwd: 640 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AttentionTiles {
    pub starts: View,
    pub o: View,
    pub lse: View,
    pub seq: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub sequences: u32,
    pub qkv: TensorMap,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AttentionTilesBwd {
    pub starts: View,
    pub stats: View,
    pub dqkv: View,
    pub sums: View,
    pub seq: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub sequences: u32,
    pub parts: u32,
    pub qkv64: TensorMap,
    pub qkv: TensorMap,
    pub do64: TensorMap,
    pub do_: TensorMap,
}
