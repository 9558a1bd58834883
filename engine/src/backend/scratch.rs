//! What the ops of a backend take of its memory beside their results, said without running them: with
//! it a dry run takes as much as the run.

use super::Heads;
use crate::memory::free_list::Allocator;

/// A backend's memory in numbers. Lists are the bytes of the blocks that an op holds at once, beside its
/// result, until it is done; an op that is not here takes none.
pub trait Scratch {
    /// Books of the kind that the backend keeps, with nothing in them yet; of a slab with blocks of up to `small` bytes
    /// at its end.
    fn allocator(&self, small: usize) -> Box<dyn Allocator>;
    /// Bytes of the blocks that it takes before all others and keeps.
    fn fixed(&self) -> Vec<usize>;
    /// What a block of `bytes` takes of the memory.
    fn block(&self, bytes: usize) -> usize;
    /// As [`super::Backend::logits_rows`].
    fn logits_rows(&self, cols: usize) -> usize;
    /// As [`super::Backend::pieces`].
    fn comm_chunks(&self, rows: usize) -> usize;
    /// `matmul_nt`, `matmul_nn` and what they are made of: `[m, n, k]` of the product of m x k and k x n.
    fn matmul(&self, shape: [usize; 3]) -> Vec<usize>;
    /// `matmul_tn_acc`, as `matmul`.
    fn matmul_acc(&self, shape: [usize; 3]) -> Vec<usize>;
    /// `rmsnorm_bwd` and `rmsnorm_bwd_add` of `[rows, cols]`.
    fn rmsnorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize>;
    /// `attention` over `rows` rows.
    fn attention(&self, rows: usize, h: Heads) -> Vec<usize>;
    fn attention_bwd(&self, rows: usize, h: Heads) -> Vec<usize>;
    /// `embed_bwd` of `[tokens, cols]`.
    fn embed_bwd(&self, tokens: usize, cols: usize) -> Vec<usize>;
    /// `sum_squares` over so many elements.
    fn sum_squares(&self, elements: usize) -> Vec<usize>;
}
