//! The embedding: rows of a table, and their gradient.

use crate::args::{Embed, EmbedBwd, EmbedSort, View};
use crate::geometry;
use crate::kernels::{EMBED, EMBED_BWD, EMBED_BWD_RUNS, EMBED_MERGE, EMBED_SORT};
use crate::machine::{Done, Machine, launch};

/// y `[T, D]` = the rows of table `[V, D]` that ids `[T]` name; `first` is the id of the first row.
pub fn embed(m: &dyn Machine, ids: View, table: View, first: usize, y: View) -> Done {
    let (tokens, d) = (ids.len(), y.len() / ids.len());
    let held = table.len() / d;
    assert_eq!((y.len(), table.len()), (tokens * d, held * d), "an embedding of {tokens} x {d}");
    let args = Embed { ids, table, y, first: first as u32, held: held as u32, d: d as u32, unused: 0 };
    // SAFETY: the views are held to tokens x d, and to held x d.
    unsafe { launch(m, EMBED, &args, geometry::embed(tokens, d)) }
}

/// What the gradient needs for itself: [`geometry::embed_words`] u32 and [`geometry::embed_parts`] f32.
#[derive(Debug, Clone, Copy)]
pub struct EmbedScratch {
    pub words: View,
    pub parts: View,
}

/// dtable `[V, D]` += the rows of dy `[T, D]`, those of one id in their order.
pub fn embed_bwd(m: &dyn Machine, ids: View, dy: View, first: usize, dtable: View, scratch: EmbedScratch) -> Done {
    let (tokens, d) = (ids.len(), dy.len() / ids.len());
    let held = dtable.len() / d;
    let EmbedScratch { words, parts } = scratch;
    assert_eq!((dy.len(), dtable.len()), (tokens * d, held * d), "the gradient of an embedding of {tokens} x {d}");
    assert!(held <= geometry::EMBED_ROWS, "{held} rows of a table, more than {}", geometry::EMBED_ROWS);
    let scratch = (geometry::embed_words(tokens), geometry::embed_parts(tokens, d));
    assert_eq!((words.len(), parts.len()), scratch, "scratch of {tokens} x {d}");
    let keys = geometry::embed_keys(tokens);
    let (rows, sorted) = (words.part::<u32>(keys..keys + tokens), words.part::<u32>(keys + tokens..words.len()));
    let keys = words.part::<u32>(0..keys);
    let sort = EmbedSort { ids, keys, rows, tokens: sorted, first: first as u32, held: held as u32 };
    let add = EmbedBwd { rows, tokens: sorted, dy, dtable, parts, d: d as u32, unused: 0 };
    // SAFETY: the views are held to tokens x d, to held x d and to the scratch of both; the rows that the sort
    // leaves are below `held` or nowhere, and its tokens are below `tokens`.
    unsafe {
        launch(m, EMBED_SORT, &sort, geometry::embed_sort(tokens))?;
        launch(m, EMBED_MERGE, &sort, geometry::embed_merge(tokens))?;
        launch(m, EMBED_BWD, &add, geometry::embed_bwd(tokens, d))?;
        launch(m, EMBED_BWD_RUNS, &add, geometry::embed_bwd(tokens, d))
    }
}
