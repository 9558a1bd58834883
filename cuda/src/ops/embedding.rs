//! The embedding, and its gradient. The gradient first sorts the tokens by id, so that each row of the table is summed
//! in token order.

use super::BLOCK;
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    EMBEDDING_CU = "embedding.cu" {
        EMBED = "embed": Embed;
        EMBED_SORT = "embed_sort": EmbedSort;
        EMBED_MERGE = "embed_merge": EmbedSort;
        EMBED_BWD = "embed_bwd": EmbedBwd;
        EMBED_BWD_RUNS = "embed_bwd_runs": EmbedBwd;
    }
}

sized! { Embed: 64, EmbedSort: 72, EmbedBwd: 88 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Embed {
    pub ids: View,
    pub table: View,
    pub y: View,
    pub first: u32,
    pub held: u32,
    pub d: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EmbedSort {
    pub ids: View,
    pub keys: View,
    pub rows: View,
    pub tokens: View,
    pub first: u32,
    pub held: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EmbedBwd {
    pub rows: View,
    pub tokens: View,
    pub dy: View,
    pub dtable: View,
    pub parts: View,
    pub d: u32,
    pub padding: u32,
}

/// Tokens that one block sorts.
const CHUNK: usize = 1024;

/// The most rows of the table: a sort key holds the row and the token's index within its chunk.
const EMBED_ROWS: usize = u32::MAX as usize / CHUNK - 1;

/// Sorted tokens and columns that one warp adds up.
const TILE: usize = 32;
const SLICE: usize = 256;

/// `embed`: (row, part of the row), up to four vectors of eight elements per thread.
pub(super) fn embed_geometry(tokens: usize, d: usize) -> Geometry {
    let block = (d.div_ceil(32).next_multiple_of(32) as u32).min(BLOCK);
    Geometry { grid: [tokens as u32, d.div_ceil(32 * block as usize) as u32, 1], block, shared: 0 }
}

/// `embed_sort`: one block per chunk.
pub(super) fn embed_sort_geometry(tokens: usize) -> Geometry {
    Geometry { grid: [tokens.div_ceil(CHUNK) as u32, 1, 1], block: CHUNK as u32, shared: 8 * CHUNK as u32 }
}

/// `embed_merge`: one thread per key.
pub(super) fn embed_merge_geometry(tokens: usize) -> Geometry {
    Geometry { grid: [(embed_keys(tokens) / BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `embed_bwd` and `embed_bwd_runs`: one warp per tile and slice.
pub(super) fn embed_bwd_geometry(tokens: usize, d: usize) -> Geometry {
    let warps = tokens.div_ceil(TILE) * d.div_ceil(SLICE);
    Geometry { grid: [(warps * 32).div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// Keys of the sort, padded to whole chunks.
fn embed_keys(tokens: usize) -> usize {
    tokens.next_multiple_of(CHUNK)
}

/// Scratch of the sort in u32 elements: the keys, then the sorted rows and tokens.
pub fn embed_words(tokens: usize) -> usize {
    embed_keys(tokens) + 2 * tokens
}

/// Scratch in f32 elements for sums of runs that continue into the next tile.
pub fn embed_parts(tokens: usize, d: usize) -> usize {
    tokens.div_ceil(TILE) * d
}

/// Gathers y `[T, D]` from table `[V, D]` by ids `[T]`; the table's first row has the id `first`.
pub fn embed(m: &dyn Machine, ids: View, table: View, first: usize, y: View) -> Done {
    let (tokens, d) = (ids.len(), y.len() / ids.len());
    let held = table.len() / d;
    assert_eq!((y.len(), table.len()), (tokens * d, held * d), "an embedding of {tokens} x {d}");
    let args = Embed { ids, table, y, first: first as u32, held: held as u32, d: d as u32, padding: 0 };
    // SAFETY: the views are checked against tokens x d and held x d.
    unsafe { launch(m, EMBED, &args, embed_geometry(tokens, d)) }
}

/// Scratch of [`embed_bwd`]: [`embed_words`] u32 and [`embed_parts`] f32.
#[derive(Debug, Clone, Copy)]
pub struct EmbedScratch {
    pub words: View,
    pub parts: View,
}

/// Accumulates the rows of dy `[T, D]` into dtable `[V, D]`, those of one id in token order.
pub fn embed_bwd(m: &dyn Machine, ids: View, dy: View, first: usize, dtable: View, scratch: EmbedScratch) -> Done {
    let (tokens, d) = (ids.len(), dy.len() / ids.len());
    let held = dtable.len() / d;
    let EmbedScratch { words, parts } = scratch;
    assert_eq!((dy.len(), dtable.len()), (tokens * d, held * d), "the gradient of an embedding of {tokens} x {d}");
    assert!(held <= EMBED_ROWS, "{held} rows of a table, more than {EMBED_ROWS}");
    let scratch = (embed_words(tokens), embed_parts(tokens, d));
    assert_eq!((words.len(), parts.len()), scratch, "scratch of {tokens} x {d}");
    let keys = embed_keys(tokens);
    let (rows, sorted) = (words.part::<u32>(keys..keys + tokens), words.part::<u32>(keys + tokens..words.len()));
    let keys = words.part::<u32>(0..keys);
    let sort = EmbedSort { ids, keys, rows, tokens: sorted, first: first as u32, held: held as u32 };
    let add = EmbedBwd { rows, tokens: sorted, dy, dtable, parts, d: d as u32, padding: 0 };
    // SAFETY: the views are checked against tokens x d, held x d and the lengths of the scratch; the sort writes rows
    // below `held`, or one value that means none, and tokens below `tokens`.
    unsafe {
        launch(m, EMBED_SORT, &sort, embed_sort_geometry(tokens))?;
        launch(m, EMBED_MERGE, &sort, embed_merge_geometry(tokens))?;
        launch(m, EMBED_BWD, &add, embed_bwd_geometry(tokens, d))?;
        launch(m, EMBED_BWD_RUNS, &add, embed_bwd_geometry(tokens, d))
    }
}
