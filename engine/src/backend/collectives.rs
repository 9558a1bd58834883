//! What ranks do together.

use super::{Act, Backend, Pending, Tensor, TensorViewMut};
use crate::backend::Elem;
use std::ops::Range;

/// How the rows of a matrix `[n r, c]` are dealt out to n ranks, r rows each: cut into pieces, of each of which every
/// rank has its share. So a piece that was gathered lies in one stretch, and may be multiplied while others travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkedRows {
    /// n.
    pub ranks: usize,
    /// r.
    pub rows: usize,
    pub chunks: usize,
}

impl ChunkedRows {
    /// Each piece: its rows among a rank's, and among all.
    pub fn comm_chunks(self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let ChunkedRows { ranks, rows, chunks } = self;
        let from = move |i| rows * i / chunks;
        (0..chunks).map(move |i| (from(i)..from(i + 1), ranks * from(i)..ranks * from(i + 1)))
    }
}

/// One communicator's collectives. What is `Pending` owns its buffers until it is waited for, so forgetting one
/// leaks and never races. A group of one hands its input back.
pub trait Collectives<B: Backend> {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;

    /// Starts to bring the ranks' rows together, rank after rank: `from` `[r, c]` -> `to` `[n r, c]`.
    ///
    /// # Safety
    /// Until the ticket has been waited for both must live, and nothing else may use `to` or write to `from`.
    unsafe fn gather<T: Elem>(&self, b: &B, from: &Tensor<B, T>, to: &Tensor<B, T>) -> B::Ticket;
    /// Starts to sum over the ranks, of which this one gets its rows: `from` `[n r, c]` -> `to` `[r, c]`.
    ///
    /// # Safety
    /// As of `gather`.
    unsafe fn scatter<T: Elem>(&self, b: &B, from: &Tensor<B, T>, to: &Tensor<B, T>) -> B::Ticket;

    /// The sum over the ranks, everywhere.
    fn all_reduce<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T>;
    /// The ranks' rows one after another, where those of all have their place and this rank's are there already:
    /// `[n r, c]` as it is.
    fn all_gather_within<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T>;
    /// Point to point, both at once where both are given: `send` to the group's rank beside it, and a
    /// matrix of this shape from the group's rank beside it. Messages between two ranks of a group arrive
    /// in the order in which they were sent. What was sent comes back when its block is free again.
    fn exchange(&self, b: &B, send: Option<(Act<B>, usize)>, recv: Option<Expected>) -> Exchanged<B>;

    /// The ranks' rows one after another: `[r, c]` -> `[n r, c]`.
    fn all_gather<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T> {
        self.all_gather_chunked(b, x, 1)
    }

    /// The rows that were dealt out: `[r, c]` -> `[n r, c]`. Each piece comes by itself.
    fn all_gather_chunked<T: Elem>(&self, b: &B, x: Tensor<B, T>, chunks: usize) -> Pending<B, T> {
        let (ranks, rows) = (self.size(), x.rows());
        if ranks == 1 {
            return Pending::ready(x);
        }
        let out = b.alloc(ranks * rows, x.cols());
        let mut pending = Pending::of(x, out);
        for (mine, all) in (ChunkedRows { ranks, rows, chunks }).comm_chunks() {
            // SAFETY: `pending` owns both until it has waited, and no two pieces share a row.
            pending.start(mine, all, |from, to| unsafe { self.gather(b, from, to) });
        }
        pending
    }

    /// This rank's rows of the sum: `[n r, c]` -> `[r, c]`.
    fn reduce_scatter<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T> {
        self.reduce_scatter_chunked(b, x, 1)
    }

    /// The sum, dealt out: `[n r, c]` -> `[r, c]`.
    fn reduce_scatter_chunked<T: Elem>(&self, b: &B, x: Tensor<B, T>, chunks: usize) -> Pending<B, T> {
        if self.size() == 1 {
            return Pending::ready(x);
        }
        self.reduce_scatter_as_computed(b, x, chunks, |_, _| ())
    }

    /// As `reduce_scatter_chunked`, of an `x` whose pieces `make` makes: one is summed while the next is made.
    /// It is told of their rows.
    fn reduce_scatter_as_computed<T: Elem>(
        &self,
        b: &B,
        mut x: Tensor<B, T>,
        chunks: usize,
        mut make: impl FnMut(Range<usize>, &mut TensorViewMut<B, T>),
    ) -> Pending<B, T> {
        let ranks = self.size();
        assert!(x.rows().is_multiple_of(ranks), "{} rows scattered over {ranks} ranks", x.rows());
        let rows = x.rows() / ranks;
        if ranks == 1 {
            make(0..rows, &mut x.view_rows_mut(0..rows));
            return Pending::ready(x);
        }
        let out = b.alloc(rows, x.cols());
        let mut pending = Pending::of(x, out);
        for (mine, all) in (ChunkedRows { ranks, rows, chunks }).comm_chunks() {
            make(all.clone(), &mut pending.input_rows(all.clone()));
            // SAFETY: as above.
            pending.start(all, mine, |from, to| unsafe { self.scatter(b, from, to) });
        }
        pending
    }
}

/// A matrix that another rank of the group will send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub rows: usize,
    pub cols: usize,
    pub from: usize,
}

/// Both halves of an exchange under way.
pub struct Exchanged<B: Backend> {
    pub sent: Option<Pending<B, <B as Backend>::Act>>,
    pub received: Option<Pending<B, <B as Backend>::Act>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_is_dealt_once(ranks in 1usize..9, rows in 1usize..40, chunks in 1usize..6) {
            let deal = ChunkedRows { ranks, rows, chunks: chunks.min(rows) };
            let (mut of_rank, mut of_all) = (0, 0);
            for (mine, all) in deal.comm_chunks() {
                prop_assert_eq!((mine.start, all.start), (of_rank, of_all));
                prop_assert!(!mine.is_empty() && all.len() == ranks * mine.len());
                (of_rank, of_all) = (mine.end, all.end);
            }
            prop_assert_eq!((of_rank, of_all), (rows, ranks * rows));
        }
    }
}
