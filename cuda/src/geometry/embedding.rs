//! The embedding, and the sort of tokens that its gradient begins with.

use super::{BLOCK, Geometry};

/// Tokens that a block sorts.
const CHUNK: usize = 1024;

/// Rows of the table that a key has room for beside its token's place in a chunk.
pub const EMBED_ROWS: usize = u32::MAX as usize / CHUNK - 1;

/// Sorted tokens of a tile, and columns of a slice, that a warp adds up.
const TILE: usize = 32;
const SLICE: usize = 256;

/// `embed`: (row, piece of the row), up to four vectors of eight a thread.
pub fn embed(tokens: usize, d: usize) -> Geometry {
    let block = (d.div_ceil(32).next_multiple_of(32) as u32).min(BLOCK);
    Geometry { grid: [tokens as u32, d.div_ceil(32 * block as usize) as u32, 1], block, shared: 0 }
}

/// `embed_sort`: a block a chunk.
pub fn embed_sort(tokens: usize) -> Geometry {
    Geometry { grid: [tokens.div_ceil(CHUNK) as u32, 1, 1], block: CHUNK as u32, shared: 8 * CHUNK as u32 }
}

/// `embed_merge`: a thread a key.
pub fn embed_merge(tokens: usize) -> Geometry {
    Geometry { grid: [(embed_keys(tokens) / BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `embed_bwd` and `embed_bwd_runs`: a warp a tile and slice.
pub fn embed_bwd(tokens: usize, d: usize) -> Geometry {
    let warps = tokens.div_ceil(TILE) * d.div_ceil(SLICE);
    Geometry { grid: [(warps * 32).div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// Keys of the sort: whole chunks.
pub fn embed_keys(tokens: usize) -> usize {
    tokens.next_multiple_of(CHUNK)
}

/// Elements of u32 that the sort needs: keys, then rows and tokens in order.
pub fn embed_words(tokens: usize) -> usize {
    embed_keys(tokens) + 2 * tokens
}

/// Elements of f32 for the sums of runs that go on in a further tile.
pub fn embed_parts(tokens: usize, d: usize) -> usize {
    tokens.div_ceil(TILE) * d
}
