//! Causal attention with grouped key/value heads, by kernels that run on every supported device. A block works on
//! queries, or on keys, of one head of one sequence.

use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    ATTENTION_CU = "attention.cu" {
        ATTENTION_64 = "attention_64": Attention;
        ATTENTION_128 = "attention_128": Attention;
    }
    ATTENTION_STATS_CU = "attention_stats.cu" {
        pub(super) ATTENTION_STATS_64 = "attention_stats_64": AttentionBwd;
        pub(super) ATTENTION_STATS_128 = "attention_stats_128": AttentionBwd;
    }
    ATTENTION_DKV_CU = "attention_dkv.cu" {
        ATTENTION_DKV_64 = "attention_dkv_64": AttentionBwd;
        ATTENTION_DKV_128 = "attention_dkv_128": AttentionBwd;
        ATTENTION_DKV_SUM_64 = "attention_dkv_sum_64": AttentionBwd;
        ATTENTION_DKV_SUM_128 = "attention_dkv_sum_128": AttentionBwd;
    }
    ATTENTION_DQ_CU = "attention_dq.cu" {
        ATTENTION_DQ_64 = "attention_dq_64": AttentionBwd;
        ATTENTION_DQ_128 = "attention_dq_128": AttentionBwd;
    }
}

sized! { Attention: 80, AttentionBwd: 144 }

/// Declared in `kernels/args_attention.cuh`.
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
    pub padding: u32,
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

/// Supported head sizes.
pub const HEAD_DIMS: [usize; 2] = [64, 128];

/// Queries per block of the forward pass.
const QUERIES: usize = 128;
/// Keys per block of the backward pass.
const KEYS: usize = 128;

/// Heads, and how the T rows of a batch form sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// H, query heads.
    pub query: usize,
    /// G, key/value heads.
    pub kv: usize,
    /// d, one of [`HEAD_DIMS`].
    pub dim: usize,
    /// Rows of a sequence.
    pub seq: usize,
    pub sequences: usize,
}

impl Shape {
    /// T.
    pub fn rows(&self) -> usize {
        self.seq * self.sequences
    }

    /// Columns of qkv, (H + 2G) d.
    pub fn qkv_cols(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }
}

/// Bytes of a bf16 tile in shared memory.
pub(super) fn tile_bytes(rows: usize, dim: usize) -> usize {
    rows * dim * 2
}

/// Blocks are ordered by head first and along a sequence second, so that those with the most work start first.
fn geometry(heads: usize, blocks: usize, block: u32, shared: usize) -> Geometry {
    Geometry { grid: [heads as u32, blocks as u32, 1], block, shared: shared as u32 }
}

/// `attention_64` and `attention_128`: (query head, queries from the last on).
pub(super) fn forward_geometry(s: Shape) -> Geometry {
    let keys = if s.dim == 64 { 128 } else { 64 };
    let shared = tile_bytes(QUERIES, s.dim) + 2 * tile_bytes(keys, s.dim);
    geometry(s.query * s.sequences, s.seq.div_ceil(QUERIES), 128, shared)
}

/// Records of 64 queries per head, padded to whole tiles of 128.
fn records(s: Shape) -> usize {
    s.seq.div_ceil(128) * 2
}

/// `attention_stats_64` and `_128`: (query head, 64 queries).
pub(super) fn stats_geometry(s: Shape) -> Geometry {
    geometry(s.query * s.sequences, records(s), 256, 0)
}

/// Words of a record: lse, D and the start of each query.
const RECORD: usize = 3 * 64;

/// Scratch in u32 elements for per-query statistics that the backward kernels pass on.
pub fn stats_len(s: Shape) -> usize {
    s.query * s.sequences * records(s) * RECORD
}

/// Bytes of the records of so many queries in shared memory.
fn stats_bytes(queries: usize) -> usize {
    queries / 64 * RECORD * size_of::<u32>()
}

/// Number of parts into which the query heads of a key/value head are split: enough for two blocks per multiprocessor
/// of a large device, since the last keys of a sequence have little work. It must not depend on the device, because
/// the sums depend on it.
pub fn attention_parts(s: Shape) -> usize {
    let (group, blocks) = (s.query / s.kv, s.kv * s.sequences * s.seq.div_ceil(KEYS));
    let enough = |parts: &usize| group.is_multiple_of(*parts) && blocks * parts >= 256;
    (1..=group).find(enough).unwrap_or(group)
}

/// Scratch in f32 elements for the gradients of `parts` parts before they are summed.
pub fn sums_len(s: Shape, parts: usize) -> usize {
    if parts == 1 { 0 } else { parts * s.kv * s.sequences * s.seq.div_ceil(KEYS) * KEYS * s.dim * 2 }
}

/// `attention_dkv_64` and `_128`: (part of a key/value head, keys from the first on).
pub(super) fn dkv_geometry(s: Shape, parts: usize) -> Geometry {
    let queries = 8192 / s.dim;
    let tiles = 2 * tile_bytes(KEYS, s.dim) + 3 * tile_bytes(queries, s.dim) + tile_bytes(KEYS, queries);
    geometry(s.kv * s.sequences * parts, s.seq.div_ceil(KEYS), 256, tiles + 2 * stats_bytes(queries))
}

/// `attention_dkv_sum_64` and `_128`: (key/value head, keys).
pub(super) fn dkv_sum_geometry(s: Shape) -> Geometry {
    geometry(s.kv * s.sequences, s.seq.div_ceil(KEYS), 256, 2 * tile_bytes(KEYS, s.dim))
}

/// `attention_dq_64` and `_128`: (query head, queries from the last on).
pub(super) fn dq_geometry(s: Shape) -> Geometry {
    let queries = 2 * s.dim;
    let shared = 2 * tile_bytes(queries, s.dim) + 2 * tile_bytes(64, s.dim) + stats_bytes(queries);
    geometry(s.query * s.sequences, s.seq.div_ceil(queries), queries as u32, shared)
}

/// [`super::attention`] on sm_80 and later.
pub fn attention_sm80(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    check(s, [qkv, starts, o, lse]);
    let (seq, heads, kv_heads) = (s.seq as u32, s.query as u32, s.kv as u32);
    let args = Attention { qkv, starts, o, lse, seq, heads, kv_heads, padding: 0 };
    let kernel = if s.dim == 64 { ATTENTION_64 } else { ATTENTION_128 };
    // SAFETY: `check` checks the views against the shape.
    unsafe { launch(m, kernel, &args, forward_geometry(s)) }
}

/// Asserts that the kernels support the shape, and that the views have its lengths.
pub(super) fn check(s: Shape, [qkv, starts, o, lse]: [View; 4]) {
    assert!(HEAD_DIMS.contains(&s.dim), "heads of {}, not of {HEAD_DIMS:?}", s.dim);
    assert!(s.kv > 0 && s.query.is_multiple_of(s.kv) && s.rows() > 0, "attention over {s:?}");
    assert!(s.rows() < 1 << 31, "attention over {} rows", s.rows());
    let expected = [s.qkv_cols(), 1, s.query * s.dim, s.query].map(|cols| s.rows() * cols);
    assert_eq!([qkv, starts, o, lse].map(|view| view.len()), expected, "qkv, starts, o, lse of {s:?}");
    check_aligned(&[qkv, o]);
}

/// Asserts that these views are aligned for vectors of 16 bytes.
fn check_aligned(views: &[View]) {
    let beside = views.iter().map(|view| view.at() % 16).collect::<Vec<_>>();
    assert!(beside.iter().all(|&b| b == 0), "views start {beside:?} bytes past a multiple of 16");
}

/// Inputs and outputs of the forward pass that the backward pass reads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSaved {
    pub qkv: View,
    pub o: View,
    pub lse: View,
    pub starts: View,
}

/// Scratch of the backward pass: [`stats_len`] u32, and [`sums_len`] f32 for `parts` parts ([`attention_parts`]).
#[derive(Debug, Clone, Copy)]
pub struct Scratch {
    pub stats: View,
    pub sums: View,
    pub parts: usize,
}

/// The arguments of the backward pass, checked against the shape and the parts of the scratch.
pub(super) fn backward_args(do_: View, saved: AttentionSaved, dqkv: View, scratch: Scratch, s: Shape) -> AttentionBwd {
    let AttentionSaved { qkv, o, lse, starts } = saved;
    let Scratch { stats, sums, parts } = scratch;
    check(s, [qkv, starts, o, lse]);
    check(s, [dqkv, starts, do_, lse]);
    assert!(parts > 0 && (s.query / s.kv).is_multiple_of(parts), "{parts} parts of the heads of {s:?}");
    let lengths = (stats_len(s), sums_len(s, parts));
    assert_eq!((stats.len(), sums.len()), lengths, "scratch of {parts} parts of {s:?}");
    check_aligned(&[stats, sums]);
    let (seq, heads, kv_heads, parts) = (s.seq as u32, s.query as u32, s.kv as u32, parts as u32);
    AttentionBwd { qkv, do_, o, starts, lse, dqkv, stats, sums, seq, heads, kv_heads, parts }
}

/// [`super::attention_bwd`] on sm_80 and later.
pub fn attention_bwd_sm80(
    m: &dyn Machine,
    do_: View,
    saved: AttentionSaved,
    dqkv: View,
    scratch: Scratch,
    s: Shape,
) -> Done {
    let args = backward_args(do_, saved, dqkv, scratch, s);
    let [first, dkv, dkv_sum, dq] = if s.dim == 64 {
        [ATTENTION_STATS_64, ATTENTION_DKV_64, ATTENTION_DKV_SUM_64, ATTENTION_DQ_64]
    } else {
        [ATTENTION_STATS_128, ATTENTION_DKV_128, ATTENTION_DKV_SUM_128, ATTENTION_DQ_128]
    };
    // SAFETY: `backward_args` checks the views against the shape, and the scratch against shape and parts.
    unsafe {
        launch(m, first, &args, stats_geometry(s))?;
        launch(m, dkv, &args, dkv_geometry(s, scratch.parts))?;
        if scratch.parts > 1 {
            launch(m, dkv_sum, &args, dkv_sum_geometry(s))?;
        }
        launch(m, dq, &args, dq_geometry(s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_keys_split_the_query_heads() {
        let parts = |query, kv, seq, sequences| attention_parts(Shape { query, kv, dim: 128, seq, sequences });
        assert_eq!(parts(32, 8, 4096, 1), 1);
        assert_eq!(parts(32, 8, 2048, 1), 2);
        assert_eq!((parts(8, 1, 4096, 1), parts(8, 1, 4096, 2)), (8, 4));
        assert_eq!((parts(6, 2, 100, 1), parts(2, 2, 100, 1)), (3, 1));
    }

    /// The limits of a multiprocessor of sm_80: two blocks of the forward pass, one of the other kernels.
    #[test]
    fn tiles_fit_into_shared_memory() {
        for dim in HEAD_DIMS {
            let s = Shape { query: 8, kv: 2, dim, seq: 512, sequences: 1 };
            assert!(2 * (forward_geometry(s).shared + 1024) <= 164 << 10);
            assert!([dkv_geometry(s, 1), dkv_sum_geometry(s), dq_geometry(s)].iter().all(|g| g.shared <= 163 << 10));
        }
    }
}
