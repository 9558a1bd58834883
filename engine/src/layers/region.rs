//! Entering and leaving a tensor-parallel region. This is the only file that depends on whether rows are sharded
//! outside of the region (sequence parallelism, Korthikanti et al. 2022) or replicated.
//!
//! `gather` gives a column-parallel GEMM its input, and is the backward of `scatter`; `scatter` takes a row-parallel
//! GEMM's output, and is the backward of `gather`. In a group of one both return their input.
//!
//! Sharded rows are chunk-interleaved (`ChunkedRows`): a chunk is multiplied in place while the next one is in flight.
//! Nothing that a rank computes outside of the region depends on the order of its rows.

use crate::backend::{Act, Backend, Collectives, Pending};
use std::ops::Deref;

pub enum Region<B: Backend> {
    /// Sequence parallelism: a rank holds T/tp rows outside; all-gather on entry, reduce-scatter on exit.
    RowsSharded(B::Group),
    /// A rank holds all rows outside; nothing on entry, all-reduce on exit.
    RowsHeld(B::Group),
}

/// The rows of this rank, and all rows: the same, or an all-gather in flight.
pub struct Gather<'a, B: Backend> {
    pub own: &'a Act<B>,
    coming: Option<Pending<B, B::Act>>,
}

/// All rows of the region, `[T, D]`.
pub enum Rows<'a, B: Backend> {
    Here(&'a Act<B>),
    Gathered(Act<B>),
}

impl<B: Backend> Region<B> {
    pub fn new(group: B::Group, sequence_parallel: bool) -> Self {
        if sequence_parallel { Region::RowsSharded(group) } else { Region::RowsHeld(group) }
    }

    pub fn group(&self) -> &B::Group {
        match self {
            Region::RowsSharded(group) | Region::RowsHeld(group) => group,
        }
    }

    /// All-gather on entry: `[T/tp, D] -> [T, D]`. The collective owns its buffers, so x is copied.
    pub fn gather<'a>(&self, b: &B, x: &'a Act<B>) -> Gather<'a, B> {
        match self {
            Region::RowsSharded(group) if group.size() > 1 => {
                let coming = group.all_gather_chunked(b, b.copy(x), b.comm_chunks(x.rows()));
                Gather { own: x, coming: Some(coming) }
            }
            _ => Gather { own: x, coming: None },
        }
    }

    /// Like [`Region::gather`], but for an x that has no other reader.
    pub fn collect(&self, b: &B, x: Act<B>) -> Pending<B, B::Act> {
        let chunks = b.comm_chunks(x.rows());
        match self {
            Region::RowsSharded(group) => group.all_gather_chunked(b, x, chunks),
            Region::RowsHeld(_) => Pending::ready(x),
        }
    }

    /// The sum over the ranks: `[T, D] -> [T/tp, D]`.
    pub fn scatter(&self, b: &B, y: Act<B>) -> Pending<B, B::Act> {
        match self {
            Region::RowsSharded(group) => {
                let chunks = b.comm_chunks(y.rows() / group.size());
                group.reduce_scatter_chunked(b, y, chunks)
            }
            Region::RowsHeld(group) => group.all_reduce(b, y),
        }
    }

    /// The sum over the ranks of x w^T: `[T, k]` -> `[T/tp, n]` with w `[n, k]`. A chunk of rows is reduced while the
    /// next one is multiplied.
    pub fn nt_scatter(&self, b: &B, x: &Act<B>, w: &Act<B>) -> Pending<B, B::Act> {
        match self {
            Region::RowsSharded(group) if group.size() > 1 => {
                let chunks = b.comm_chunks(x.rows() / group.size());
                group.reduce_scatter_as_computed(b, b.alloc(x.rows(), w.rows()), chunks, |rows, y| {
                    b.matmul_nt_into(&x.view_rows(rows), w, y);
                })
            }
            _ => self.scatter(b, b.matmul_nt(x, w)),
        }
    }
}

impl<'a, B: Backend> Gather<'a, B> {
    pub fn wait(self) -> Rows<'a, B> {
        match self.coming {
            None => Rows::Here(self.own),
            Some(pending) => Rows::Gathered(pending.wait()),
        }
    }

    /// Returns all rows x, and x w^T + bias: `[T, k]` -> `[T, n]` with w `[n, k]`, bias `[1, n]`. A chunk of rows is
    /// multiplied as soon as it has arrived.
    pub fn nt(self, b: &B, w: &Act<B>, bias: Option<&Act<B>>) -> (Rows<'a, B>, Act<B>) {
        self.multiplied(b, w.rows(), |x, y| match bias {
            Some(bias) => b.matmul_nt_bias_into(x, w, bias, y),
            None => b.matmul_nt_into(x, w, y),
        })
    }

    /// Returns all rows x, and x w: `[T, k]` -> `[T, n]` with w `[k, n]`. A chunk of rows is multiplied as soon as it
    /// has arrived.
    pub fn nn(self, b: &B, w: &Act<B>) -> (Rows<'a, B>, Act<B>) {
        self.multiplied(b, w.cols(), |x, y| b.matmul_nn_into(x, w, y))
    }

    fn multiplied(self, b: &B, n: usize, product: impl Fn(&Act<B>, &mut Act<B>)) -> (Rows<'a, B>, Act<B>) {
        let x = self.own;
        match self.coming {
            None => {
                let mut y = b.alloc(x.rows(), n);
                product(x, &mut y);
                (Rows::Here(x), y)
            }
            Some(mut x) => {
                let mut y = b.alloc(x.rows(), n);
                while let Some((rows, chunk)) = x.next_rows() {
                    product(&chunk, &mut y.view_rows_mut(rows));
                }
                (Rows::Gathered(x.wait()), y)
            }
        }
    }
}

impl<B: Backend> Deref for Rows<'_, B> {
    type Target = Act<B>;
    fn deref(&self) -> &Act<B> {
        match self {
            Rows::Here(x) => x,
            Rows::Gathered(x) => x,
        }
    }
}
