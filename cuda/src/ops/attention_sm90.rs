//! Causal attention with the instructions of sm_90a: one warpgroup drives the copy engine (TMA), two compute. Shared
//! memory holds tiles with two mbarriers each.

use super::attention::{
    AttentionSaved, Scores, Scratch, Shape, backward_args, check, stats_geometry, stats_kernel, tile_bytes,
};
use crate::machine::{Done, Fault, File, Geometry, Kernel, Machine, launch};
use crate::tensor::{TensorMap, Tiles, View};

kernels! {
    ATTENTION_SM90_CU = "attention_sm90.cu" only Sm90a {
        ATTENTION_SM90_64 = "attention_sm90_64": AttentionTiles;
        ATTENTION_SM90_128 = "attention_sm90_128": AttentionTiles;
        ATTENTION_SM90_64_CAPPED = "attention_sm90_64_capped": AttentionTiles;
        ATTENTION_SM90_128_CAPPED = "attention_sm90_128_capped": AttentionTiles;
    }
    ATTENTION_DKV_SM90_CU = "attention_dkv_sm90.cu" only Sm90a {
        ATTENTION_DKV_SM90_64 = "attention_dkv_sm90_64": AttentionTilesBwd;
        ATTENTION_DKV_SM90_128 = "attention_dkv_sm90_128": AttentionTilesBwd;
        ATTENTION_DKV_SM90_64_CAPPED = "attention_dkv_sm90_64_capped": AttentionTilesBwd;
        ATTENTION_DKV_SM90_128_CAPPED = "attention_dkv_sm90_128_capped": AttentionTilesBwd;
        ATTENTION_DKV_SUM_SM90_64 = "attention_dkv_sum_sm90_64": AttentionTilesBwd;
        ATTENTION_DKV_SUM_SM90_128 = "attention_dkv_sum_sm90_128": AttentionTilesBwd;
    }
    ATTENTION_DQ_SM90_CU = "attention_dq_sm90.cu" only Sm90a {
        ATTENTION_DQ_SM90_64 = "attention_dq_sm90_64": AttentionTilesBwd;
        ATTENTION_DQ_SM90_128 = "attention_dq_sm90_128": AttentionTilesBwd;
        ATTENTION_DQ_SM90_64_CAPPED = "attention_dq_sm90_64_capped": AttentionTilesBwd;
        ATTENTION_DQ_SM90_128_CAPPED = "attention_dq_sm90_128_capped": AttentionTilesBwd;
    }
}

sized! { AttentionTiles: 256, AttentionTilesBwd: 640 }

/// Declared in `kernels/args_sm90.cuh`.
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
    pub scores: Scores,
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
    pub scores: Scores,
    pub qkv64: TensorMap,
    pub qkv: TensorMap,
    pub do64: TensorMap,
    pub do_: TensorMap,
}

/// Supported head sizes. Heads of 256 have the kernels of sm_80 on sm_90a too.
pub const HEAD_DIMS_SM90: [usize; 2] = [64, 128];

/// Rows of most tiles.
const ROWS: usize = 128;
/// Queries per tile while a block keeps its keys.
const QUERIES: usize = 64;

const THREADS: u32 = 384;
/// Bytes of two mbarriers.
const BARRIERS: usize = 16;
/// Bytes of a word for each thread of the two consumers.
const WORDS: usize = 256 * size_of::<u32>();

/// Blocks a multiprocessor, of which one runs at a time. NCCL's kernels hold some multiprocessors; with one block for
/// each, those blocks would begin when all others end, and the kernel would take twice as long.
const SHARES: usize = 4;

/// Persistent blocks, each of which loops over tiles of 128 queries of a head.
fn over_queries(s: Shape, processors: usize, shared: usize) -> Geometry {
    let items = s.seq.div_ceil(ROWS) * s.query * s.sequences;
    Geometry { grid: [items.min(SHARES * processors) as u32, 1, 1], block: THREADS, shared: shared as u32 }
}

/// Blocks are ordered by head first and along a sequence second, so that those with the most work start first.
fn over_keys(heads: usize, s: Shape, block: u32, shared: usize) -> Geometry {
    Geometry { grid: [heads as u32, s.seq.div_ceil(ROWS) as u32, 1], block, shared: shared as u32 }
}

/// `attention_sm90_64` and `_128`: one tile of q, two each of k and v, and the words.
pub(super) fn forward_sm90_geometry(s: Shape, processors: usize) -> Geometry {
    over_queries(s, processors, 5 * (tile_bytes(ROWS, s.dim) + BARRIERS) + WORDS)
}

/// `attention_dkv_sm90_64` and `_128` (part of a key/value head, keys): k and v; three stages of q, do and statistics;
/// the words.
pub(super) fn dkv_sm90_geometry(s: Shape, parts: usize) -> Geometry {
    let stage = 2 * tile_bytes(QUERIES, s.dim) + 1024 + BARRIERS;
    over_keys(s.kv * s.sequences * parts, s, THREADS, 2 * (tile_bytes(ROWS, s.dim) + BARRIERS) + 3 * stage + WORDS)
}

/// `attention_dkv_sum_sm90_64` and `_128`: (key/value head, keys).
pub(super) fn dkv_sum_sm90_geometry(s: Shape) -> Geometry {
    over_keys(s.kv * s.sequences, s, 256, 0)
}

/// `attention_dq_sm90_64` and `_128`: q and do, two stages of k and v, and the words.
pub(super) fn dq_sm90_geometry(s: Shape, processors: usize) -> Geometry {
    over_queries(s, processors, 3 * (2 * tile_bytes(ROWS, s.dim) + BARRIERS) + WORDS)
}

/// [`super::attention`] on sm_90a.
pub fn attention_sm90(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    check(s, [qkv, starts, o, lse]);
    assert!(HEAD_DIMS_SM90.contains(&s.dim), "heads of {}, not of {HEAD_DIMS_SM90:?}", s.dim);
    let (seq, heads, kv_heads, sequences) = (s.seq as u32, s.query as u32, s.kv as u32, s.sequences as u32);
    let kernel =
        s.choose([ATTENTION_SM90_64, ATTENTION_SM90_128], [ATTENTION_SM90_64_CAPPED, ATTENTION_SM90_128_CAPPED]);
    let qkv = head_map(m, kernel.name, qkv, ROWS, s)?;
    let args = AttentionTiles { starts, o, lse, seq, heads, kv_heads, sequences, scores: s.scores(), qkv };
    // SAFETY: `check` checks the views against the shape, and a map never reaches beyond its view.
    unsafe { launch(m, kernel, &args, forward_sm90_geometry(s, m.processors())) }
}

/// [`super::attention_bwd`] on sm_90a.
pub fn attention_bwd_sm90(
    m: &dyn Machine,
    do_: View,
    saved: AttentionSaved,
    dqkv: View,
    scratch: Scratch,
    s: Shape,
) -> Done {
    let all = backward_args(do_, saved, dqkv, scratch, s);
    assert!(HEAD_DIMS_SM90.contains(&s.dim), "heads of {}, not of {HEAD_DIMS_SM90:?}", s.dim);
    let dkv = s.choose(
        [ATTENTION_DKV_SM90_64, ATTENTION_DKV_SM90_128],
        [ATTENTION_DKV_SM90_64_CAPPED, ATTENTION_DKV_SM90_128_CAPPED],
    );
    let sums = [ATTENTION_DKV_SUM_SM90_64, ATTENTION_DKV_SUM_SM90_128];
    let dkv_sum = s.choose(sums, sums);
    let dq = s.choose(
        [ATTENTION_DQ_SM90_64, ATTENTION_DQ_SM90_128],
        [ATTENTION_DQ_SM90_64_CAPPED, ATTENTION_DQ_SM90_128_CAPPED],
    );
    let map = |of, rows| head_map(m, dkv.name, of, rows, s);
    let args = AttentionTilesBwd {
        starts: all.starts,
        stats: all.stats,
        dqkv,
        sums: all.sums,
        seq: all.seq,
        heads: all.heads,
        kv_heads: all.kv_heads,
        sequences: s.sequences as u32,
        parts: all.parts,
        scores: all.scores,
        qkv64: map(all.qkv, QUERIES)?,
        qkv: map(all.qkv, ROWS)?,
        do64: map(do_, QUERIES)?,
        do_: map(do_, ROWS)?,
    };
    // SAFETY: `backward_args` checks the views against the shape, and the scratch against shape and parts; a map never
    // reaches beyond its view.
    unsafe {
        launch(m, stats_kernel(s), &all, stats_geometry(s))?;
        launch(m, dkv, &args, dkv_sm90_geometry(s, scratch.parts))?;
        if scratch.parts > 1 {
            launch(m, dkv_sum, &args, dkv_sum_sm90_geometry(s))?;
        }
        launch(m, dq, &args, dq_sm90_geometry(s, m.processors()))
    }
}

/// A tensor map of one head's tiles in a matrix of T rows. `kernel` is named in a fault.
fn head_map(m: &dyn Machine, kernel: &'static str, of: View, rows: usize, s: Shape) -> Result<TensorMap, Fault> {
    let tiles = Tiles { of, cols: of.len() / s.rows(), seq: s.seq, rows, dim: s.dim };
    m.tensor_map(tiles).map_err(|what| Fault { kernel, what, shapes: format!("{tiles:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit of a block on sm_90.
    #[test]
    fn tiles_fit_into_shared_memory() {
        for dim in HEAD_DIMS_SM90 {
            let s = Shape::full(8, 2, dim, 512, 1);
            let all = [forward_sm90_geometry(s, 132), dkv_sm90_geometry(s, 1), dq_sm90_geometry(s, 132)];
            assert!(all.iter().all(|g| g.shared <= 227 << 10));
        }
    }
}
