//! The way into and out of a tensor-parallel region, and so the only place that knows whether rows
//! are sharded outside of it (sequence parallelism, Korthikanti et al. 2022) or held by all.
//!
//! `gather` is what a column-parallel product reads (and the backward of `scatter`), `scatter` what
//! a row-parallel product leaves (and the backward of `gather`). In a group of one both hand back
//! what they were given.

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
            Region::RowsSharded(group) if group.size() > 1 => Gather::Coming(group.all_gather(b, b.copy(x))),
            _ => Gather::Here(x),
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
