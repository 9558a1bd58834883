//! Scratch sizes of the ops, computed without running them, by the functions that the ops allocate with.

use super::{Float, ops, pool};
use crate::backend::{Heads, Scratch};
use crate::memory::free_list::{Allocator, FreeList};
use std::marker::PhantomData;

/// The number of logits that are computed at once. Fewer would stay in the cache between the passes over them, but the
/// head's weights are packed, and its gradient is read and written, once per chunk, which would cost more.
const LOGITS: usize = 1 << 24;

/// See [`crate::backend::Backend::logits_rows`].
pub(super) fn logits_rows(cols: usize) -> usize {
    (LOGITS / cols).clamp(64, 4096)
}

/// The memory of a [`super::Cpu`] on this many threads.
#[derive(Clone)]
pub struct CpuScratch<A: Float> {
    threads: usize,
    act: PhantomData<A>,
}

impl<A: Float> CpuScratch<A> {
    pub fn new(threads: usize) -> Self {
        CpuScratch { threads: threads.max(1), act: PhantomData }
    }
}

impl<A: Float> Scratch for CpuScratch<A> {
    fn allocator(&self, _: usize) -> Box<dyn Allocator> {
        Box::new(FreeList::<()>::default())
    }

    fn fixed(&self) -> Vec<usize> {
        Vec::new()
    }

    fn block(&self, bytes: usize) -> usize {
        pool::size_class(bytes)
    }

    fn logits_rows(&self, cols: usize) -> usize {
        logits_rows(cols)
    }

    fn comm_chunks(&self, _: usize) -> usize {
        1
    }

    fn matmul(&self, shape: [usize; 3]) -> Vec<usize> {
        bytes(&ops::matmul::scratch::<A>(shape, self.threads))
    }

    fn matmul_acc(&self, shape: [usize; 3]) -> Vec<usize> {
        bytes(&ops::matmul::scratch_acc(shape, self.threads))
    }

    fn grouped(&self, n: usize, k: usize) -> Vec<usize> {
        bytes(&ops::grouped::scratch::<A>(n, k, self.threads))
    }

    fn grouped_acc(&self, _: usize, k: usize) -> Vec<usize> {
        bytes(&ops::grouped::scratch_acc(k, self.threads))
    }

    fn rmsnorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        bytes(&[ops::norm::scratch(rows, cols)])
    }

    fn layernorm_bwd(&self, rows: usize, cols: usize) -> Vec<usize> {
        bytes(&[ops::layernorm::scratch(rows, cols)])
    }

    fn bias_bwd(&self, _: usize, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn route_bwd(&self, _: usize, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn qk_norm_rope_bwd(&self, rows: usize, h: Heads) -> Vec<usize> {
        bytes(&[ops::qk_norm::scratch(rows, h.dim)])
    }

    fn attention(&self, _: usize, h: Heads) -> Vec<usize> {
        bytes(&[ops::attention::scratch(h, self.threads)])
    }

    fn attention_bwd(&self, _: usize, h: Heads) -> Vec<usize> {
        bytes(&[ops::attention_bwd::scratch(h, self.threads)])
    }

    fn embed_bwd(&self, _: usize, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn sum_squares(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }
}

/// The sizes in bytes of blocks of f32 elements.
fn bytes(lens: &[usize]) -> Vec<usize> {
    lens.iter().map(|len| len * size_of::<f32>()).collect()
}
