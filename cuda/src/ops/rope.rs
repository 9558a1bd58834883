//! Rotary position embeddings (RoPE).

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    ROPE_CU = "rope.cu" {
        ROPE = "rope": Rope;
    }
}

sized! { Rope: 72 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Rope {
    pub qkv: View,
    pub table: View,
    pub positions: View,
    pub rows: u32,
    pub cols: u32,
    pub heads: u32,
    pub dim: u32,
    pub sign: f32,
}

/// `rope`: one thread for every eight pairs of a head of a row.
pub(super) fn rope_geometry(rows: usize, heads: usize, dim: usize) -> Geometry {
    let items = rows * heads * (dim / 2).div_ceil(8);
    assert!(items < 1 << 31, "rotary positions of {rows} rows with {heads} heads of {dim}");
    Geometry { grid: [items.div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// A rotation of the leading heads of each row.
#[derive(Debug, Clone, Copy)]
pub struct RopeShape {
    /// Rotated heads.
    pub heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Columns of a row, including those that are not rotated.
    pub cols: usize,
    /// 1 rotates forward, -1 back.
    pub sign: f32,
}

/// Rotates the leading heads of qkv `[T, cols]` in place, by the rows `positions` `[T, 1]` of table `[longest, dim]`.
pub fn rope(m: &dyn Machine, qkv: View, table: View, positions: View, t: RopeShape) -> Done {
    let rows = qkv.len() / t.cols;
    assert!(qkv.len() == rows * t.cols && t.heads * t.dim <= t.cols, "{} elements as {t:?}", qkv.len());
    assert_eq!(positions.len(), rows, "positions of rows");
    let (cols, heads, dim) = (t.cols as u32, t.heads as u32, t.dim as u32);
    let args = Rope { qkv, table, positions, rows: rows as u32, cols, heads, dim, sign: t.sign };
    // SAFETY: the views are checked against rows x cols; a batch has no position beyond the table.
    unsafe { launch(m, ROPE, &args, rope_geometry(rows, t.heads, t.dim)) }
}
