//! Attention for sm_90a: a warpgroup for the copy engine and two for the products. Shared memory holds tiles, and two
//! mbarriers for each.

use super::Geometry;
use super::attention::Shape;

/// Rows of most tiles.
pub const ROWS: usize = 128;
/// Queries of a tile that goes by a block's keys.
pub const QUERIES: usize = 64;

const THREADS: u32 = 384;
/// Two mbarriers.
const BARRIERS: usize = 16;

fn tile(rows: usize, dim: usize) -> usize {
    rows * dim * 2
}

/// Blocks that stay, and go from one 128 queries of a head to the next.
fn over_queries(s: Shape, processors: usize, shared: usize) -> Geometry {
    let items = s.seq.div_ceil(ROWS) * s.query * s.sequences;
    Geometry { grid: [items.min(processors) as u32, 1, 1], block: THREADS, shared: shared as u32 }
}

/// Blocks go by head first, and along a sequence second: those that work longest come first.
fn over_keys(heads: usize, s: Shape, block: u32, shared: usize) -> Geometry {
    Geometry { grid: [heads as u32, s.seq.div_ceil(ROWS) as u32, 1], block, shared: shared as u32 }
}

/// `attention_sm90_64` and `_128`: a tile of q, two each of k and v.
pub fn forward(s: Shape, processors: usize) -> Geometry {
    over_queries(s, processors, 5 * (tile(ROWS, s.dim) + BARRIERS))
}

/// `attention_dkv_sm90_64` and `_128` (part of a key/value head, keys): k and v; three times q, do and their stats.
pub fn dkv(s: Shape, parts: usize) -> Geometry {
    let shared = 2 * (tile(ROWS, s.dim) + BARRIERS) + 3 * (2 * tile(QUERIES, s.dim) + 1024 + BARRIERS);
    over_keys(s.kv * s.sequences * parts, s, THREADS, shared)
}

/// `attention_dkv_sum_sm90_64` and `_128`: (key/value head, keys).
pub fn dkv_sum(s: Shape) -> Geometry {
    over_keys(s.kv * s.sequences, s, 256, 0)
}

/// `attention_dq_sm90_64` and `_128`: q and do, and twice k and v.
pub fn dq(s: Shape, processors: usize) -> Geometry {
    over_queries(s, processors, 3 * (2 * tile(ROWS, s.dim) + BARRIERS))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a block may have on sm_90.
    #[test]
    fn tiles_fit_into_shared_memory() {
        for dim in [64, 128] {
            let s = Shape { query: 8, kv: 2, dim, seq: 512, sequences: 1 };
            assert!([forward(s, 132), dkv(s, 1), dq(s, 132)].iter().all(|g| g.shared <= 227 << 10));
        }
    }
}
