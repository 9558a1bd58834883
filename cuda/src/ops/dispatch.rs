//! Dispatch of rows to experts: the sort of the choices by expert, copies of rows, and sums of a token's rows.

use super::swiglu::gated_geometry;
use super::{BLOCK, elementwise::elementwise_geometry};
use crate::machine::{Done, File, Geometry, Kernel, Machine, launch};
use crate::tensor::View;

kernels! {
    DISPATCH_CU = "dispatch.cu" {
        CHOICES_SORT = "choices_sort": SortChoices;
        CHOICES_MERGE = "choices_merge": SortChoices;
        CHOICES_PLACES = "choices_places": SortChoices;
        TAKE_ROWS_32 = "take_rows_32": TakeRows;
        TAKE_ROWS_16 = "take_rows_16": TakeRows;
        SUM_CHOICES = "sum_choices": SumChoices;
    }
}

sized! { SortChoices: 72, TakeRows: 56, SumChoices: 56 }

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SortChoices {
    pub chosen: View,
    pub order: View,
    pub places: View,
    pub counts: View,
    pub experts: u32,
    pub padding: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TakeRows {
    pub x: View,
    pub index: View,
    pub y: View,
    pub cols: u32,
    pub per: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SumChoices {
    pub x: View,
    pub places: View,
    pub y: View,
    pub d: u32,
    pub k: u32,
}

/// Choices that one block sorts.
const CHUNK: usize = 1024;

/// The most experts: `choices_merge` keeps a word for each in shared memory.
pub const EXPERTS: usize = 4096;

/// `choices_sort`: one block per chunk.
pub(super) fn choices_sort_geometry(choices: usize) -> Geometry {
    Geometry { grid: [choices.div_ceil(CHUNK) as u32, 1, 1], block: CHUNK as u32, shared: 8 * CHUNK as u32 }
}

/// `choices_merge`: one block per chunk, and one for the counts.
pub(super) fn choices_merge_geometry(choices: usize, experts: usize) -> Geometry {
    let blocks = choices.div_ceil(CHUNK) + 1;
    Geometry { grid: [blocks as u32, 1, 1], block: CHUNK as u32, shared: 4 * experts as u32 }
}

/// `choices_places`: one thread per choice.
pub(super) fn choices_places_geometry(choices: usize) -> Geometry {
    Geometry { grid: [choices.div_ceil(BLOCK as usize) as u32, 1, 1], block: BLOCK, shared: 0 }
}

/// `take_rows`: `n` elements of `each` to a vector of sixteen bytes, four vectors per thread at once.
pub(super) fn take_rows_geometry(n: usize, each: usize, processors: usize) -> Geometry {
    elementwise_geometry(n, 4 * each, processors)
}

/// Sorts `chosen` `[T k]` of `counts.len()` experts: the choice in each place, the place of each choice, both `[T k]`,
/// and the number of choices of each expert.
pub fn sort_choices(m: &dyn Machine, chosen: View, order: View, places: View, counts: View) -> Done {
    let (n, experts) = (chosen.len(), counts.len());
    assert_eq!((order.len(), places.len()), (n, n), "places of {n} choices");
    assert!((1..=EXPERTS).contains(&experts) && n > 0, "{n} choices of {experts} experts, at most {EXPERTS}");
    let args = SortChoices { chosen, order, places, counts, experts: experts as u32, padding: 0 };
    // SAFETY: the views are checked against the number of choices; the router writes numbers of experts.
    unsafe {
        launch(m, CHOICES_SORT, &args, choices_sort_geometry(n))?;
        launch(m, CHOICES_MERGE, &args, choices_merge_geometry(n, experts))?;
        launch(m, CHOICES_PLACES, &args, choices_places_geometry(n))
    }
}

/// The number of copies of `take_rows`, which the kernel counts in 32 bits: vectors of `each` elements where all of
/// them are aligned, else elements.
fn copies(elements: usize, cols: usize, each: usize, at: [u64; 2]) -> usize {
    let aligned = cols.is_multiple_of(each) && at.iter().all(|at| at.is_multiple_of(16));
    if aligned { elements / each } else { elements }
}

/// Row i of y `[n, cols]` is row `index[i] / per` of x, whose elements are `T`, of two or four bytes.
pub fn take_rows<T>(m: &dyn Machine, x: View, index: View, per: usize, y: View, cols: usize) -> Done {
    assert_eq!((x.len() % cols, y.len()), (0, index.len() * cols), "{} rows of {cols} columns", index.len());
    if y.is_empty() {
        return Ok(());
    }
    let (kernel, each) = if size_of::<T>() == 2 { (TAKE_ROWS_16, 8) } else { (TAKE_ROWS_32, 4) };
    let copies = copies(y.len(), cols, each, [x.at(), y.at()]);
    assert!(copies <= u32::MAX as usize / 2, "{} rows of {cols} columns", index.len());
    let args = TakeRows { x, index, y, cols: cols as u32, per: per as u32 };
    // SAFETY: the views are checked against the columns; the index has numbers of rows of x, times `per`.
    unsafe { launch(m, kernel, &args, take_rows_geometry(y.len(), each, m.processors())) }
}

/// Row t of y `[T, D]` is the sum of the rows of x `[T k, D]` that places `[T, k]` has in row t.
pub fn sum_choices(m: &dyn Machine, x: View, places: View, y: View, d: usize) -> Done {
    let (tokens, k) = (y.len() / d, places.len() * d / y.len());
    assert_eq!((x.len(), places.len(), y.len()), (tokens * k * d, tokens * k, tokens * d), "rows of {d} columns");
    let args = SumChoices { x, places, y, d: d as u32, k: k as u32 };
    // SAFETY: the views are checked against tokens, k and d; places are below tokens x k.
    unsafe { launch(m, SUM_CHOICES, &args, gated_geometry(tokens, d)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qwen3-30B-A3B with a sequence of 131,072 tokens: 2^31 elements, and an eighth of as many vectors.
    #[test]
    fn rows_are_copied_in_vectors_where_all_are_aligned() {
        let elements = 131_072 * 8 * 2048;
        assert_eq!(copies(elements, 2048, 8, [256, 512]), elements / 8);
        assert_eq!(copies(elements, 2048, 8, [256, 514]), elements);
        assert_eq!(copies(30, 10, 8, [0, 0]), 30);
    }
}
