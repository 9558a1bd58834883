//! Attention: blocks of queries, or of keys, of one head of one sequence.

use super::Geometry;

/// Sizes of a head that there are kernels for.
pub const HEAD_DIMS: [usize; 2] = [64, 128];

/// Queries of a block of the forward pass.
const QUERIES: usize = 128;

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

/// `attention_64` and `attention_128`: (head of a sequence, queries from the last on).
pub fn forward(s: Shape) -> Geometry {
    let keys = if s.dim == 64 { 128 } else { 64 };
    let shared = tile(QUERIES, s.dim) + 2 * tile(keys, s.dim);
    Geometry { grid: grid(s.query * s.sequences, s.seq.div_ceil(QUERIES)), block: 128, shared: shared as u32 }
}

fn grid(heads: usize, blocks: usize) -> [u32; 3] {
    [heads as u32, blocks as u32, 1]
}
