//! Attention to keys and values that earlier calls kept, which generation runs.

use super::{Acc, Act, Backend, Heads, Tensor};

/// The places of the rows of a call in a cache of several sequences, each with memory for a number of positions: the
/// place of a position is that of its sequence's first one plus the position.
pub struct CachedRows<'a, B: Backend> {
    /// The place of each row, `[N, 1]`.
    pub places: &'a Tensor<B, u32>,
    /// The first place that each row attends to, `[N, 1]`.
    pub first: &'a Tensor<B, u32>,
}

/// Backends that can generate text without computing earlier tokens again.
pub trait CachedAttention: Backend {
    /// Writes k and v of qkv `[N, (H + 2G) d]` to their places in `cache` `[C, 2G d]`; then each row attends to the
    /// places `first ..= place`. Otherwise like [`Backend::attention`]: (o `[N, H d]`, logsumexp `[N, H]`).
    fn attention_cached(
        &self,
        qkv: &Act<Self>,
        cache: &mut Act<Self>,
        rows: CachedRows<Self>,
        h: Heads,
    ) -> (Act<Self>, Acc<Self>);
}
