//! The way into and out of a tensor-parallel region, and so the only place that knows whether rows
//! are sharded outside of it (sequence parallelism, Korthikanti et al. 2022) or held by all.
//!
//! `gather` is what a column-parallel product reads (and the backward of `scatter`), `scatter` what
//! a row-parallel product leaves (and the backward of `gather`). In a group of one both hand back
//! what they were given.

use crate::backend::{Act, Backend, Blocks, Collectives, Pending};
use std::ops::{Deref, Range};

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
            Region::RowsSharded(group) if group.size() > 1 => Gather::Coming(group.all_gather(b, b.copy(x))),
            _ => Gather::Here(x),
        }
    }

    /// (all rows of x) w^T: `[T/tp, k]` -> `[T, n]` with w `[n, k]`. Rows are multiplied as they arrive.
    pub fn gather_nt(&self, b: &B, x: &Act<B>, w: &Act<B>) -> Act<B> {
        match self {
            Region::RowsSharded(group) if group.size() > 1 => gather_nt(b, group, x, w),
            _ => b.matmul_nt(x, w),
        }
    }

    /// This rank's rows of the sum over the ranks of x w^T: `[T, k]` -> `[T/tp, n]` with w `[n, k]`. Rows leave as
    /// they are made.
    pub fn nt_scatter(&self, b: &B, x: &Act<B>, w: &Act<B>) -> Act<B> {
        match self {
            Region::RowsSharded(group) if group.size() > 1 => nt_scatter(b, group, x, w),
            _ => self.scatter(b, b.matmul_nt(x, w)).wait(),
        }
    }

    /// As `gather`, of what is read nowhere else.
    pub fn collect(&self, b: &B, x: Act<B>) -> Pending<B, B::Act> {
        match self {
            Region::RowsSharded(group) => group.all_gather(b, x),
            Region::RowsHeld(_) => Pending::ready(x),
        }
    }

    /// The sum over the ranks: `[T, D] -> [T/tp, D]`.
    pub fn scatter(&self, b: &B, y: Act<B>) -> Pending<B, B::Act> {
        match self {
            Region::RowsSharded(group) => group.reduce_scatter(b, y),
            Region::RowsHeld(group) => group.all_reduce(b, y),
        }
    }
}

/// Of each rank the same rows travel together, a piece of them behind the product of the piece before.
fn gather_nt<B: Backend>(b: &B, group: &B::Group, x: &Act<B>, w: &Act<B>) -> Act<B> {
    let (count, step, k) = (group.size(), x.rows(), x.cols());
    let pieces = b.pieces(step);
    if pieces == 1 {
        return b.matmul_nt(&group.all_gather(b, b.copy(x)).wait(), w);
    }
    let start = |rows: Range<usize>| group.all_gather(b, b.copy(&x.lend(rows.start * k, rows.len(), k)));
    let coming: Vec<Pending<B, B::Act>> = cut(step, pieces).map(start).collect();
    let mut y = b.alloc(count * step, w.rows());
    for (rows, piece) in cut(step, pieces).zip(coming) {
        let rows = Blocks { count, each: rows.len(), first: rows.start, step };
        b.matmul_nt_to(&piece.wait(), w, rows, &mut y);
    }
    y
}

/// The reverse: the sums of a piece are under way while the next is multiplied.
fn nt_scatter<B: Backend>(b: &B, group: &B::Group, x: &Act<B>, w: &Act<B>) -> Act<B> {
    let (count, n) = (group.size(), w.rows());
    let step = x.rows() / count;
    let pieces = b.pieces(step);
    if pieces == 1 {
        return group.reduce_scatter(b, b.matmul_nt(x, w)).wait();
    }
    let mut y = b.alloc(step, n);
    let start = |rows: Range<usize>| {
        let rows = Blocks { count, each: rows.len(), first: rows.start, step };
        group.reduce_scatter(b, b.matmul_nt_of(x, rows, w))
    };
    let leaving: Vec<Pending<B, B::Act>> = cut(step, pieces).map(start).collect();
    for (rows, piece) in cut(step, pieces).zip(leaving) {
        b.copy_to(&piece.wait(), &mut y.lend_mut(rows.start * n, rows.len(), n));
    }
    y
}

/// `rows` in so many parts of about one size.
fn cut(rows: usize, pieces: usize) -> impl Iterator<Item = Range<usize>> {
    (0..pieces).map(move |i| rows * i / pieces..rows * (i + 1) / pieces)
}

impl<'a, B: Backend> Gather<'a, B> {
    pub fn wait(self) -> Rows<'a, B> {
        match self {
            Gather::Here(x) => Rows::Here(x),
            Gather::Coming(pending) => Rows::Gathered(pending.wait()),
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
