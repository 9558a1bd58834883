//! Attention: blocks of queries, or of keys, of one head of one sequence.

use super::Geometry;

/// Sizes of a head that there are kernels for.
pub const HEAD_DIMS: [usize; 2] = [64, 128];

/// Queries of a block of the forward pass.
const QUERIES: usize = 128;
/// Keys of a block of the backward pass.
const KEYS: usize = 128;

/// Heads, and the sequences that a batch of T = rows holds.
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
    /// Sequences.
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

/// Bytes of a tile of bf16 in shared memory.
fn tile(rows: usize, dim: usize) -> usize {
    rows * dim * 2
}

/// Blocks go by head first, and along a sequence second: those that work longest come first.
fn over(heads: usize, blocks: usize, block: u32, shared: usize) -> Geometry {
    Geometry { grid: [heads as u32, blocks as u32, 1], block, shared: shared as u32 }
}

/// `attention_64` and `attention_128`: (query head, queries from the last on).
pub fn forward(s: Shape) -> Geometry {
    let keys = if s.dim == 64 { 128 } else { 64 };
    let shared = tile(QUERIES, s.dim) + 2 * tile(keys, s.dim);
    over(s.query * s.sequences, s.seq.div_ceil(QUERIES), 128, shared)
}

/// Records of 64 queries that a head has: whole tiles of 128.
fn records(s: Shape) -> usize {
    s.seq.div_ceil(128) * 2
}

/// `attention_stats_64` and `_128`: (query head, 64 queries).
pub fn stats(s: Shape) -> Geometry {
    over(s.query * s.sequences, records(s), 256, 0)
}

/// Numbers of a record.
const RECORD: usize = 3 * 64;

/// Elements of u32 that the kernels of the backward pass hand on about queries.
pub fn stats_len(s: Shape) -> usize {
    s.query * s.sequences * records(s) * RECORD
}

/// Bytes of the records of so many queries in shared memory.
fn stats_bytes(queries: usize) -> usize {
    queries / 64 * RECORD * size_of::<u32>()
}

/// In how many parts the query heads of a key/value head are divided: as many as give every processor of a large
/// device two blocks, for what keys near a sequence's end have to do is little. Not of the device: the sums depend on it.
pub fn parts(s: Shape) -> usize {
    let (group, blocks) = (s.query / s.kv, s.kv * s.sequences * s.seq.div_ceil(KEYS));
    let enough = |parts: &usize| group.is_multiple_of(*parts) && blocks * parts >= 256;
    (1..=group).find(enough).unwrap_or(group)
}

/// Elements of f32 that `parts` parts hand on to their sum.
pub fn sums_len(s: Shape, parts: usize) -> usize {
    if parts == 1 { 0 } else { parts * s.kv * s.sequences * s.seq.div_ceil(KEYS) * KEYS * s.dim * 2 }
}

/// `attention_dkv_64` and `_128`: (part of a key/value head, keys from the first on).
pub fn dkv(s: Shape, parts: usize) -> Geometry {
    let queries = 8192 / s.dim;
    let shared = 2 * tile(KEYS, s.dim) + 3 * tile(queries, s.dim) + tile(KEYS, queries) + 2 * stats_bytes(queries);
    over(s.kv * s.sequences * parts, s.seq.div_ceil(KEYS), 256, shared)
}

/// `attention_dkv_sum_64` and `_128`: (key/value head, keys).
pub fn dkv_sum(s: Shape) -> Geometry {
    over(s.kv * s.sequences, s.seq.div_ceil(KEYS), 256, 2 * tile(KEYS, s.dim))
}

/// `attention_dq_64` and `_128`: (query head, queries from the last on).
pub fn dq(s: Shape) -> Geometry {
    let queries = 2 * s.dim;
    let shared = 2 * tile(queries, s.dim) + 2 * tile(64, s.dim) + stats_bytes(queries);
    over(s.query * s.sequences, s.seq.div_ceil(queries), queries as u32, shared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_keys_take_parts_of_the_heads() {
        let parts = |query, kv, seq, sequences| parts(Shape { query, kv, dim: 128, seq, sequences });
        assert_eq!(parts(32, 8, 4096, 1), 1);
        assert_eq!(parts(32, 8, 2048, 1), 2);
        assert_eq!((parts(8, 1, 4096, 1), parts(8, 1, 4096, 2)), (8, 4));
        assert_eq!((parts(6, 2, 100, 1), parts(2, 2, 100, 1)), (3, 1));
    }

    /// What a processor of sm_80 has: two blocks of the forward pass, one of the others.
    #[test]
    fn tiles_fit_into_shared_memory() {
        for dim in HEAD_DIMS {
            let s = Shape { query: 8, kv: 2, dim, seq: 512, sequences: 1 };
            assert!(2 * (forward(s).shared + 1024) <= 164 << 10);
            assert!([dkv(s, 1), dkv_sum(s), dq(s)].iter().all(|g| g.shared <= 163 << 10));
        }
    }
}
