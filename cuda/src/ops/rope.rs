//! Rotary positions.

use crate::args::{Rope, View};
use crate::geometry;
use crate::kernels::ROPE;
use crate::machine::{Done, Machine, launch};

/// Heads that turn, their size, columns of a row, rows of a sequence; sign 1 turns, -1 turns back.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    pub heads: usize,
    pub dim: usize,
    pub cols: usize,
    pub seq: usize,
    pub sign: f32,
}

/// Turns the leading heads of qkv `[T, cols]` in place, by table `[positions, dim]`.
pub fn rope(m: &dyn Machine, qkv: View, table: View, t: Turn) -> Done {
    let rows = qkv.len() / t.cols;
    assert!(qkv.len() == rows * t.cols && t.heads * t.dim <= t.cols, "{} elements as {t:?}", qkv.len());
    assert!(table.len() >= t.seq.min(rows) * t.dim, "a table of {} elements for {t:?}", table.len());
    let (cols, heads, dim, seq) = (t.cols as u32, t.heads as u32, t.dim as u32, t.seq as u32);
    let args = Rope { qkv, table, rows: rows as u32, cols, heads, dim, seq, sign: t.sign };
    // SAFETY: the views are held to rows x cols, and to the positions of a sequence.
    unsafe { launch(m, ROPE, &args, geometry::rope(rows, t.heads, t.dim)) }
}
