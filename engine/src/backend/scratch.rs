//! Sizes of the memory that a backend's ops allocate besides their results, known without running the ops: with these
//! sizes a dry run allocates exactly what the run does.

use super::Heads;
use crate::memory::free_list::Allocator;

/// The memory requirements of a backend. A list has the sizes in bytes of the blocks that an op holds at once, besides
/// its result, until it is done. An op without a function here allocates no such blocks.
pub trait Scratch {
    /// An empty allocator of the kind that the backend uses. An arena puts blocks of up to `small` bytes at its far
    /// end.
    fn allocator(&self, small: usize) -> Box<dyn Allocator>;
    /// Bytes of the blocks that the backend allocates first and keeps.
    fn fixed(&self) -> Vec<usize>;
    /// Bytes that a block of `bytes` bytes takes, including its alignment.
    fn block(&self, bytes: usize) -> usize;
    /// The same as [`super::Backend::logits_rows`].
    fn logits_rows(&self, cols: usize) -> usize;
    /// The same as [`super::Backend::comm_chunks`].
    fn comm_chunks(&self, rows: usize) -> usize;
    /// `matmul_nt`, `matmul_nn` and their `_into` forms: `[m, n, k]` of the product of m x k and k x n.
    fn matmul(&self, shape: [usize; 3]) -> Vec<usize>;
    /// `matmul_tn_acc`, with `shape` as in [`Scratch::matmul`].
    fn matmul_acc(&self, shape: [usize; 3]) -> Vec<usize>;
    /// `grouped_nt` and `grouped_nn` of matrices with `k` columns to ones with `n`, whatever their rows.
    fn grouped(&self, n: usize, k: usize) -> Vec<usize>;
    /// `grouped_tn_acc` of matrices with `n` and `k` columns, whatever their rows.
    fn grouped_acc(&self, n: usize, k: usize) -> Vec<usize>;
    /// `rmsnorm_bwd` and `rmsnorm_bwd_add` of `[rows, cols]`.
    fn rmsnorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize>;
    /// `layernorm_bwd` of `[rows, cols]`.
    fn layernorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize>;
    /// `bias_bwd` of `[rows, cols]`.
    fn bias_bwd(&self, rows: usize, cols: usize) -> Vec<usize>;
    /// `qk_norm_rope_bwd` over `rows` rows.
    fn qk_norm_rope_bwd(&self, rows: usize, h: Heads) -> Vec<usize>;
    /// `attention` over `rows` rows.
    fn attention(&self, rows: usize, h: Heads) -> Vec<usize>;
    fn attention_bwd(&self, rows: usize, h: Heads) -> Vec<usize>;
    /// `embed_bwd` of `[tokens, cols]`.
    fn embed_bwd(&self, tokens: usize, cols: usize) -> Vec<usize>;
    /// `route_bwd` of `rows` tokens, whatever the length of their sequences.
    fn route_bwd(&self, rows: usize, experts: usize) -> Vec<usize>;
    /// `sum_squares` over this number of elements.
    fn sum_squares(&self, elements: usize) -> Vec<usize>;
}
