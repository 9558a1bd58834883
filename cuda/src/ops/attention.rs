//! Causal attention with grouped key/value heads, by kernels that run on every supported device. A block works on
//! queries, or on keys, of one head of one sequence.

use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    ATTENTION_CU = "attention.cu" {
        ATTENTION_64 = "attention_64": Attention;
        ATTENTION_128 = "attention_128": Attention;
        ATTENTION_256 = "attention_256": Attention;
        ATTENTION_64_CAPPED = "attention_64_capped": Attention;
        ATTENTION_128_CAPPED = "attention_128_capped": Attention;
        ATTENTION_256_CAPPED = "attention_256_capped": Attention;
    }
    ATTENTION_STATS_CU = "attention_stats.cu" {
        ATTENTION_STATS_64 = "attention_stats_64": AttentionBwd;
        ATTENTION_STATS_128 = "attention_stats_128": AttentionBwd;
        ATTENTION_STATS_256 = "attention_stats_256": AttentionBwd;
    }
    ATTENTION_DKV_CU = "attention_dkv.cu" {
        ATTENTION_DKV_64 = "attention_dkv_64": AttentionBwd;
        ATTENTION_DKV_128 = "attention_dkv_128": AttentionBwd;
        ATTENTION_DKV_256 = "attention_dkv_256": AttentionBwd;
        ATTENTION_DKV_64_CAPPED = "attention_dkv_64_capped": AttentionBwd;
        ATTENTION_DKV_128_CAPPED = "attention_dkv_128_capped": AttentionBwd;
        ATTENTION_DKV_256_CAPPED = "attention_dkv_256_capped": AttentionBwd;
        ATTENTION_DKV_SUM_64 = "attention_dkv_sum_64": AttentionBwd;
        ATTENTION_DKV_SUM_128 = "attention_dkv_sum_128": AttentionBwd;
        ATTENTION_DKV_SUM_256 = "attention_dkv_sum_256": AttentionBwd;
    }
    ATTENTION_DQ_CU = "attention_dq.cu" {
        ATTENTION_DQ_64 = "attention_dq_64": AttentionBwd;
        ATTENTION_DQ_128 = "attention_dq_128": AttentionBwd;
        ATTENTION_DQ_256 = "attention_dq_256": AttentionBwd;
        ATTENTION_DQ_64_CAPPED = "attention_dq_64_capped": AttentionBwd;
        ATTENTION_DQ_128_CAPPED = "attention_dq_128_capped": AttentionBwd;
        ATTENTION_DQ_256_CAPPED = "attention_dq_256_capped": AttentionBwd;
    }
}

sized! { Scores: 16, Attention: 96, AttentionBwd: 160 }

/// The factors of the scores. Declared in `kernels/args_attention.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    pub scale: f32,
    pub power: f32,
    pub inner: f32,
    pub padding: u32,
}

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
    pub scores: Scores,
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
    pub scores: Scores,
}

/// Supported head sizes.
pub const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// Queries per block of the forward pass.
const QUERIES: usize = 128;

/// Heads, how the T rows of a batch form sequences, and how scores are made of q k^T.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// The factor of q k^T.
    pub scale: f32,
    /// c where the scaled scores s become c tanh(s / c).
    pub cap: Option<f32>,
}

impl Shape {
    /// Scores scaled by d^-1/2, without a cap.
    pub fn full(query: usize, kv: usize, dim: usize, seq: usize, sequences: usize) -> Shape {
        Shape { query, kv, dim, seq, sequences, scale: 1.0 / (dim as f32).sqrt(), cap: None }
    }

    /// T.
    pub fn rows(&self) -> usize {
        self.seq * self.sequences
    }

    /// Columns of qkv, (H + 2G) d.
    pub fn qkv_cols(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }

    pub(super) fn scores(&self) -> Scores {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        let scale = self.scale;
        let (power, inner) = self.cap.map_or((scale * LOG2_E, 0.0), |cap| (cap * LOG2_E, 2.0 * LOG2_E * (scale / cap)));
        Scores { scale, power, inner, padding: 0 }
    }

    /// The kernel for the head size, of those in the order of [`HEAD_DIMS`].
    pub(super) fn choose<A, const N: usize>(&self, plain: [Kernel<A>; N], capped: [Kernel<A>; N]) -> Kernel<A> {
        let at = HEAD_DIMS.iter().position(|dim| *dim == self.dim).expect("`check` has checked the head size");
        if self.cap.is_some() { capped[at] } else { plain[at] }
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

/// `attention_64` .. `_256_capped`: (query head, queries from the last on). The cap takes registers, so there are fewer
/// keys per tile.
pub(super) fn forward_geometry(s: Shape) -> Geometry {
    let (keys, block) = match (s.dim, s.cap) {
        (64, None) => (128, 128),
        (64, Some(_)) | (128, None) => (64, 128),
        (128, Some(_)) => (32, 128),
        _ => (64, 256),
    };
    let shared = tile_bytes(QUERIES, s.dim) + 2 * tile_bytes(keys, s.dim);
    geometry(s.query * s.sequences, s.seq.div_ceil(QUERIES), block, shared)
}

/// Records of 64 queries per head, padded to whole tiles of 128.
fn records(s: Shape) -> usize {
    s.seq.div_ceil(128) * 2
}

/// `attention_stats_64` .. `_256`: (query head, 64 queries).
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

/// Keys per block of the backward pass.
fn keys(dim: usize) -> usize {
    if dim == 256 { 64 } else { 128 }
}

/// Number of parts into which the query heads of a key/value head are split: enough for two blocks per multiprocessor
/// of a large device, since the last keys of a sequence have little work. It must not depend on the device, because
/// the sums depend on it.
pub fn attention_parts(s: Shape) -> usize {
    let (group, blocks) = (s.query / s.kv, s.kv * s.sequences * s.seq.div_ceil(keys(s.dim)));
    let enough = |parts: &usize| group.is_multiple_of(*parts) && blocks * parts >= 256;
    (1..=group).find(enough).unwrap_or(group)
}

/// Scratch in f32 elements for the gradients of `parts` parts before they are summed.
pub fn sums_len(s: Shape, parts: usize) -> usize {
    let keys = keys(s.dim);
    if parts == 1 { 0 } else { parts * s.kv * s.sequences * s.seq.div_ceil(keys) * keys * s.dim * 2 }
}

/// `attention_dkv_64` .. `_256_capped`: (part of a key/value head, keys from the first on). A tile of 32 queries has
/// the record of 64.
pub(super) fn dkv_geometry(s: Shape, parts: usize) -> Geometry {
    let (keys, queries) = (keys(s.dim), 8192 / s.dim);
    let tiles = 2 * tile_bytes(keys, s.dim) + 3 * tile_bytes(queries, s.dim) + tile_bytes(keys, queries);
    geometry(s.kv * s.sequences * parts, s.seq.div_ceil(keys), 256, tiles + 2 * stats_bytes(queries.max(64)))
}

/// `attention_dkv_sum_64` .. `_256`: (key/value head, keys).
pub(super) fn dkv_sum_geometry(s: Shape) -> Geometry {
    let keys = keys(s.dim);
    geometry(s.kv * s.sequences, s.seq.div_ceil(keys), 256, 2 * tile_bytes(keys, s.dim))
}

/// `attention_dq_64` .. `_256_capped`: (query head, queries from the last on).
pub(super) fn dq_geometry(s: Shape) -> Geometry {
    let (queries, keys, block) = match s.dim {
        64 => (128, 64, 128),
        128 => (256, 64, 256),
        _ => (128, 32, 256),
    };
    let shared = 2 * tile_bytes(queries, s.dim) + 2 * tile_bytes(keys, s.dim) + stats_bytes(queries);
    geometry(s.query * s.sequences, s.seq.div_ceil(queries), block, shared)
}

/// [`super::attention`] on sm_80 and later.
pub fn attention_sm80(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    check(s, [qkv, starts, o, lse]);
    let (seq, heads, kv_heads) = (s.seq as u32, s.query as u32, s.kv as u32);
    let args = Attention { qkv, starts, o, lse, seq, heads, kv_heads, padding: 0, scores: s.scores() };
    let kernel = s.choose(
        [ATTENTION_64, ATTENTION_128, ATTENTION_256],
        [ATTENTION_64_CAPPED, ATTENTION_128_CAPPED, ATTENTION_256_CAPPED],
    );
    // SAFETY: `check` checks the views against the shape.
    unsafe { launch(m, kernel, &args, forward_geometry(s)) }
}

/// Asserts that the kernels support the shape, and that the views have its lengths.
pub(super) fn check(s: Shape, [qkv, starts, o, lse]: [View; 4]) {
    assert!(HEAD_DIMS.contains(&s.dim), "heads of {}, not of {HEAD_DIMS:?}", s.dim);
    assert!(s.kv > 0 && s.query.is_multiple_of(s.kv) && s.rows() > 0, "attention over {s:?}");
    assert!(s.scale > 0.0 && s.cap.is_none_or(|cap| cap > 0.0), "scale and cap of {s:?}");
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
    AttentionBwd { qkv, do_, o, starts, lse, dqkv, stats, sums, seq, heads, kv_heads, parts, scores: s.scores() }
}

/// The kernel that every backward pass launches first.
pub(super) fn stats_kernel(s: Shape) -> Kernel<AttentionBwd> {
    let all = [ATTENTION_STATS_64, ATTENTION_STATS_128, ATTENTION_STATS_256];
    s.choose(all, all)
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
    let dkv = s.choose(
        [ATTENTION_DKV_64, ATTENTION_DKV_128, ATTENTION_DKV_256],
        [ATTENTION_DKV_64_CAPPED, ATTENTION_DKV_128_CAPPED, ATTENTION_DKV_256_CAPPED],
    );
    let sums = [ATTENTION_DKV_SUM_64, ATTENTION_DKV_SUM_128, ATTENTION_DKV_SUM_256];
    let dkv_sum = s.choose(sums, sums);
    let dq = s.choose(
        [ATTENTION_DQ_64, ATTENTION_DQ_128, ATTENTION_DQ_256],
        [ATTENTION_DQ_64_CAPPED, ATTENTION_DQ_128_CAPPED, ATTENTION_DQ_256_CAPPED],
    );
    // SAFETY: `backward_args` checks the views against the shape, and the scratch against shape and parts.
    unsafe {
        launch(m, stats_kernel(s), &args, stats_geometry(s))?;
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
        let parts = |query, kv, seq, sequences| attention_parts(Shape::full(query, kv, 128, seq, sequences));
        assert_eq!(parts(32, 8, 4096, 1), 1);
        assert_eq!(parts(32, 8, 2048, 1), 2);
        assert_eq!((parts(8, 1, 4096, 1), parts(8, 1, 4096, 2)), (8, 4));
        assert_eq!((parts(6, 2, 100, 1), parts(2, 2, 100, 1)), (3, 1));
        // Heads of 256: 64 keys per block.
        assert_eq!((attention_parts(Shape::full(16, 8, 256, 4096, 1)), parts(16, 8, 4096, 1)), (1, 1));
        assert_eq!((attention_parts(Shape::full(16, 8, 256, 1024, 1)), parts(16, 8, 2048, 1)), (2, 2));
    }

    /// The kernels get the factors that they document; without a cap they are those of 1 / sqrt(d).
    #[test]
    fn factors_of_scores() {
        let plain = Shape { scale: 0.125, ..Shape::full(1, 1, 64, 1, 1) };
        assert_eq!(plain.scores(), Scores { scale: 0.125, power: 0.18033688, inner: 0.0, padding: 0 });
        let capped = Shape { scale: 0.0625, cap: Some(50.0), ..plain }.scores();
        assert_eq!((capped.scale, capped.power), (0.0625, 72.134_75));
        assert!((capped.inner - 0.0625 / 50.0 * 2.885_39).abs() < 1e-9, "{capped:?}");
    }

    /// The limits of a multiprocessor of sm_80: 256 threads of the forward pass, one block of the other kernels.
    #[test]
    fn tiles_fit_into_shared_memory() {
        for (dim, cap) in HEAD_DIMS.into_iter().flat_map(|dim| [(dim, None), (dim, Some(1.0))]) {
            let s = Shape { cap, ..Shape::full(8, 2, dim, 512, 1) };
            let forward = forward_geometry(s);
            assert!(256 / forward.block * (forward.shared + 1024) <= 164 << 10);
            assert!([dkv_geometry(s, 1), dkv_sum_geometry(s), dq_geometry(s)].iter().all(|g| g.shared <= 163 << 10));
        }
    }
}
