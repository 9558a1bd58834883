//! Attention for sm_90a: blocks that stay and go from one item to the next.

use super::Geometry;
use super::attention::Shape;

/// Queries, and keys, of a tile.
pub const ROWS: usize = 128;

/// A warpgroup for the copy engine and two for the products.
const THREADS: u32 = 384;

/// `attention_sm90_64` and `_128`: a tile of queries and two each of keys and values, with two mbarriers a tile.
pub fn forward(s: Shape, processors: usize) -> Geometry {
    let items = s.seq.div_ceil(ROWS) * s.query * s.sequences;
    let shared = 5 * (ROWS * s.dim * 2 + 16);
    Geometry { grid: [items.min(processors) as u32, 1, 1], block: THREADS, shared: shared as u32 }
}
