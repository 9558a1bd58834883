//! The way into and out of a tensor-parallel region, and so the only place that knows whether rows
//! are sharded outside of it (sequence parallelism, Korthikanti et al. 2022) or held by all.
//!
//! `gather` is what a column-parallel product reads (and the backward of `scatter`), `scatter` what
//! a row-parallel product leaves (and the backward of `gather`). In a group of one both hand back
//! what they were given.
//!
//! Sharded rows are dealt out (`ChunkedRows`): of each piece of the micro-batch every rank has a share, so that a piece is
//! multiplied where it lies while the next is on its way. To what a rank does with its rows their order is the same.

use crate::backend::{Act, Backend, Collectives, Pending};
use std::ops::Deref;

pub enum Region<B: Backend> {
    /// Outside, each rank holds T/tp rows: all-gather in, reduce-scatter out.
    RowsSharded(B::Group),
    /// Outside, each rank holds all rows: nothing in, all-reduce out.
    RowsHeld(B::Group),
}

/// All rows, or the promise of them.
pub enum Gather<'a, B: Backend> {
    Here(&'a Act<B>),
    Coming(Pending<B, B::Act>),
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

    /// `[T/tp, D] -> [T, D]`. The collective owns its buffers, hence the copy.
    pub fn gather<'a>(&self, b: &B, x: &'a Act<B>) -> Gather<'a, B> {
        match self {
            Region::RowsSharded(group) if group.size() > 1 => {
                Gather::Coming(group.all_gather_chunked(b, b.copy(x), b.comm_chunks(x.rows())))
            }
            _ => Gather::Here(x),
        }
    }

    /// As `gather`, of what is read nowhere else.
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

    /// The sum over the ranks of x w^T: `[T, k]` -> `[T/tp, n]` with w `[n, k]`. Rows leave as they are made.
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
        match self {
            Gather::Here(x) => Rows::Here(x),
            Gather::Coming(pending) => Rows::Gathered(pending.wait()),
        }
    }

    /// All rows x, and x w^T: `[T, k]` -> `[T, n]` with w `[n, k]`. Rows are multiplied as they come.
    pub fn nt(self, b: &B, w: &Act<B>) -> (Rows<'a, B>, Act<B>) {
        self.multiplied(b, w.rows(), |x, y| b.matmul_nt_into(x, w, y))
    }

    /// All rows x, and x w: `[T, k]` -> `[T, n]` with w `[k, n]`. Rows are multiplied as they come.
    pub fn nn(self, b: &B, w: &Act<B>) -> (Rows<'a, B>, Act<B>) {
        self.multiplied(b, w.cols(), |x, y| b.matmul_nn_into(x, w, y))
    }

    fn multiplied(self, b: &B, n: usize, product: impl Fn(&Act<B>, &mut Act<B>)) -> (Rows<'a, B>, Act<B>) {
        match self {
            Gather::Here(x) => {
                let mut y = b.alloc(x.rows(), n);
                product(x, &mut y);
                (Rows::Here(x), y)
            }
            Gather::Coming(mut x) => {
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
