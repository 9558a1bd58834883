//! RMSNorm of each head of q and k, fused with the rotation.

use super::{BLOCK, sum_rows};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;
use engine::backend::Heads;

kernels! {
    QK_NORM_CU = "qk_norm.cu" {
        QK_NORM_ROPE = "qk_norm_rope": QkNormRope;
        QK_NORM_ROPE_BWD = "qk_norm_rope_bwd": QkNormRopeBwd;
    }
}

sized! { QkNormRope: 128, QkNormRopeBwd: 144 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct QkNormRope {
    pub qkv: View,
    pub y: View,
    pub q: View,
    pub k: View,
    pub table: View,
    pub positions: View,
    pub rows: u32,
    pub cols: u32,
    pub query: u32,
    pub heads: u32,
    pub dim: u32,
    pub lanes: u32,
    pub eps: f32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct QkNormRopeBwd {
    pub dqkv: View,
    pub qkv: View,
    pub q: View,
    pub k: View,
    pub table: View,
    pub positions: View,
    pub parts: View,
    pub rows: u32,
    pub cols: u32,
    pub query: u32,
    pub heads: u32,
    pub dim: u32,
    pub lanes: u32,
    pub eps: f32,
    pub q_blocks: u32,
}

/// The largest head: one warp with eight pairs per lane.
pub(super) const NORM_HEAD: usize = 512;

/// Lanes that process a head: a power of two, so that a warp has whole heads.
fn lanes(dim: usize) -> usize {
    assert!(dim > 0 && dim <= NORM_HEAD && dim.is_multiple_of(2), "norms of heads of {dim}");
    (dim / 2).div_ceil(8).next_power_of_two()
}

/// `qk_norm_rope`: some lanes for each head of q, k and v of each row.
pub(super) fn qk_norm_rope_geometry(rows: usize, h: Heads) -> Geometry {
    let threads = rows * (h.query + 2 * h.kv) * lanes(h.dim);
    assert!(threads < 1 << 31, "norms of the heads of {rows} rows, {h:?}");
    Geometry { grid: [threads.div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `qk_norm_rope_bwd`, and how many of its blocks process heads of q: as many blocks as run at once, of which q and k
/// get shares by their heads, at least one.
pub(super) fn qk_norm_rope_bwd_geometry(rows: usize, h: Heads, processors: usize) -> (Geometry, usize) {
    let (lanes, heads) = (lanes(h.dim), h.query + h.kv);
    assert!(rows * heads * lanes < 1 << 31, "norms of the heads of {rows} rows, {h:?}");
    let groups = BLOCK as usize / lanes;
    let blocks = (rows * heads).div_ceil(groups).clamp(2, 3 * processors);
    let of_q = (blocks * h.query / heads).clamp(1, blocks - 1);
    (Geometry { grid: [blocks as u32, 1, 1], block: BLOCK, shared: (groups * h.dim * 4) as u32 }, of_q)
}

/// Partial sums, in f32 elements, that `qk_norm_rope_bwd` writes and `sum_rows` adds up.
pub fn qk_norm_parts(rows: usize, h: Heads, processors: usize) -> usize {
    qk_norm_rope_bwd_geometry(rows, h, processors).0.grid[0] as usize * h.dim
}

/// The weights of q and k, `[d]` each, and the rows `positions` `[T, 1]` of table `[longest, d]`.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms {
    pub q: View,
    pub k: View,
    pub eps: f32,
    pub table: View,
    pub positions: View,
}

/// y from qkv, `[T, (H + 2G) d]` each.
pub fn qk_norm_rope(m: &dyn Machine, qkv: View, n: HeadNorms, h: Heads, y: View) -> Done {
    let rows = checked(qkv, y, n, h);
    let HeadNorms { q, k, eps, table, positions } = n;
    let [rows_, cols, query, heads, dim, lanes] = sizes(rows, h);
    let padding = 0;
    let args = QkNormRope { qkv, y, q, k, table, positions, rows: rows_, cols, query, heads, dim, lanes, eps, padding };
    // SAFETY: `checked` compares the views with rows x cols; a batch has no position beyond the table.
    unsafe { launch(m, QK_NORM_ROPE, &args, qk_norm_rope_geometry(rows, h)) }
}

/// Overwrites dqkv, the gradient of the result, with that of qkv; adds to the gradients of the weights of q and k,
/// `[d]` each. `parts` is scratch of [`qk_norm_parts`] f32.
pub fn qk_norm_rope_bwd(
    m: &dyn Machine,
    dqkv: View,
    qkv: View,
    n: HeadNorms,
    h: Heads,
    [dq, dk]: [View; 2],
    parts: View,
) -> Done {
    let rows = checked(qkv, dqkv, n, h);
    assert_eq!([dq, dk].map(|g| g.len()), [h.dim; 2], "gradients of the weights of {h:?}");
    assert_eq!(parts.len(), qk_norm_parts(rows, h, m.processors()), "partial sums of {rows} rows, {h:?}");
    let (geometry, of_q) = qk_norm_rope_bwd_geometry(rows, h, m.processors());
    let HeadNorms { q, k, eps, table, positions } = n;
    let [rows, cols, query, heads, dim, lanes] = sizes(rows, h);
    let q_blocks = of_q as u32;
    let args =
        QkNormRopeBwd { dqkv, qkv, q, k, table, positions, parts, rows, cols, query, heads, dim, lanes, eps, q_blocks };
    // SAFETY: `checked` compares the views with rows x cols, and `parts` has a row per block; a batch has no position
    // beyond the table.
    unsafe { launch(m, QK_NORM_ROPE_BWD, &args, geometry)? };
    sum_rows(m, parts.part::<f32>(0..of_q * h.dim), dq)?;
    sum_rows(m, parts.part::<f32>(of_q * h.dim..parts.len()), dk)
}

/// The rows, after the views are compared with them.
fn checked(x: View, y: View, n: HeadNorms, h: Heads) -> usize {
    let (cols, rows) = (h.qkv_cols(), n.positions.len());
    assert_eq!((x.len(), y.len()), (rows * cols, rows * cols), "{rows} rows of {h:?}");
    assert_eq!([n.q, n.k].map(|w| w.len()), [h.dim; 2], "weights of {h:?}");
    assert!(h.query > 0 && h.kv > 0 && n.table.len().is_multiple_of(h.dim), "a table for {h:?}");
    rows
}

/// Rows, columns, heads of q, heads of q and k, elements of a head and its lanes, as arguments.
fn sizes(rows: usize, h: Heads) -> [u32; 6] {
    [rows, h.qkv_cols(), h.query, h.query + h.kv, h.dim, lanes(h.dim)].map(|size| size as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_shared_by_the_heads() {
        let share = |rows, query, kv| {
            let (geometry, of_q) = qk_norm_rope_bwd_geometry(rows, Heads::full(query, kv, 128, rows), 132);
            (geometry.grid[0], of_q)
        };
        assert_eq!(share(8192, 32, 8), (396, 316));
        assert_eq!(share(1, 1, 1), (2, 1));
        assert_eq!(share(8192, 1, 1), (396, 198));
        assert_eq!(lanes(64) + lanes(96) + lanes(128) + lanes(256) + lanes(2), 4 + 8 + 8 + 16 + 1);
    }
}
