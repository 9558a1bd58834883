//! Collectives, and how they are split into chunks to overlap with matrix products.

use super::{Act, Backend, Pending, Tensor, TensorViewMut};
use crate::backend::Elem;
use std::ops::Range;

/// Chunk-interleaved sharding of a matrix `[n r, c]` over n ranks, r rows each: every rank owns a slice of each chunk,
/// so that a gathered chunk is contiguous and can be multiplied while the next one is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkedRows {
    /// The number of ranks, n.
    pub ranks: usize,
    /// The rows of each rank, r.
    pub rows: usize,
    pub chunks: usize,
}

impl ChunkedRows {
    /// The rows of each chunk: in a rank's matrix `[r, c]`, and in the whole matrix `[n r, c]`.
    pub fn chunks(self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let ChunkedRows { ranks, rows, chunks } = self;
        let from = move |i| rows * i / chunks;
        (0..chunks).map(move |i| (from(i)..from(i + 1), ranks * from(i)..ranks * from(i + 1)))
    }
}

/// The collectives of one communicator. A `Pending` owns its buffers until it is waited for; a forgotten one leaks
/// memory, but causes no race. In a group of one rank, a collective returns its input.
pub trait Collectives<B: Backend> {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;

    /// Starts an all-gather of the ranks' rows, in rank order: `from` `[r, c]` -> `to` `[n r, c]`.
    ///
    /// # Safety
    /// Until the ticket has been waited for, both matrices must stay allocated, and nothing else may use `to` or write
    /// to `from`.
    unsafe fn gather<T: Elem>(&self, b: &B, from: &Tensor<B, T>, to: &Tensor<B, T>) -> B::Ticket;
    /// Starts a reduce-scatter (sum); this rank gets its rows: `from` `[n r, c]` -> `to` `[r, c]`.
    ///
    /// # Safety
    /// The same as for [`Collectives::gather`].
    unsafe fn scatter<T: Elem>(&self, b: &B, from: &Tensor<B, T>, to: &Tensor<B, T>) -> B::Ticket;

    /// An all-reduce: the sum over the ranks, on every rank.
    fn all_reduce<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T>;
    /// An in-place all-gather: x `[n r, c]` holds this rank's rows already.
    fn all_gather_within<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T>;
    /// An all-to-all of rows: rank i gets the rows `send[i]` of x, and its rows come to the rows `receive[i]` of `to`,
    /// which is returned. All ranges are apart; this rank's own rows are copied. Only in groups of several ranks.
    fn all_to_all<T: Elem>(
        &self,
        b: &B,
        x: Tensor<B, T>,
        send: &[Range<usize>],
        to: Tensor<B, T>,
        receive: &[Range<usize>],
    ) -> Pending<B, T>;
    /// Point-to-point send and receive: `send` is a matrix and the group rank that receives it, `recv` describes a
    /// matrix that another group rank sends. If both are given, they form one group call. Messages between two ranks
    /// arrive in the order in which they were sent. The sent matrix is returned when its block may be reused.
    fn exchange(&self, b: &B, send: Option<(Act<B>, usize)>, recv: Option<Expected>) -> Exchanged<B>;

    /// An all-gather: the ranks' rows in rank order, `[r, c]` -> `[n r, c]`.
    fn all_gather<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T> {
        self.all_gather_chunked(b, x, 1)
    }

    /// An all-gather of chunk-interleaved rows, one call per chunk: `[r, c]` -> `[n r, c]`.
    fn all_gather_chunked<T: Elem>(&self, b: &B, x: Tensor<B, T>, chunks: usize) -> Pending<B, T> {
        let (ranks, rows) = (self.size(), x.rows());
        if ranks == 1 {
            return Pending::ready(x);
        }
        let out = b.alloc(ranks * rows, x.cols());
        let mut pending = Pending::of(x, out);
        for (mine, all) in (ChunkedRows { ranks, rows, chunks }).chunks() {
            // SAFETY: `pending` owns both until it has waited, and no two chunks share a row.
            pending.start(mine, all, |from, to| unsafe { self.gather(b, from, to) });
        }
        pending
    }

    /// A reduce-scatter: this rank's rows of the sum, `[n r, c]` -> `[r, c]`.
    fn reduce_scatter<T: Elem>(&self, b: &B, x: Tensor<B, T>) -> Pending<B, T> {
        self.reduce_scatter_chunked(b, x, 1)
    }

    /// A reduce-scatter to chunk-interleaved rows, one call per chunk: `[n r, c]` -> `[r, c]`.
    fn reduce_scatter_chunked<T: Elem>(&self, b: &B, x: Tensor<B, T>, chunks: usize) -> Pending<B, T> {
        if self.size() == 1 {
            return Pending::ready(x);
        }
        self.reduce_scatter_as_computed(b, x, chunks, |_, _| ())
    }

    /// Like [`Collectives::reduce_scatter_chunked`], but `compute(rows, chunk)` fills the chunks of x one after
    /// another, and a chunk is reduced while the next one is computed.
    fn reduce_scatter_as_computed<T: Elem>(
        &self,
        b: &B,
        mut x: Tensor<B, T>,
        chunks: usize,
        mut compute: impl FnMut(Range<usize>, &mut TensorViewMut<B, T>),
    ) -> Pending<B, T> {
        let ranks = self.size();
        assert!(x.rows().is_multiple_of(ranks), "{} rows scattered over {ranks} ranks", x.rows());
        let rows = x.rows() / ranks;
        if ranks == 1 {
            compute(0..rows, &mut x.view_rows_mut(0..rows));
            return Pending::ready(x);
        }
        let out = b.alloc(rows, x.cols());
        let mut pending = Pending::of(x, out);
        for (mine, all) in (ChunkedRows { ranks, rows, chunks }).chunks() {
            compute(all.clone(), &mut pending.input_rows(all.clone()));
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

/// The two halves of an exchange in flight.
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
        fn every_row_is_in_one_chunk(ranks in 1usize..9, rows in 1usize..40, chunks in 1usize..6) {
            let chunked = ChunkedRows { ranks, rows, chunks: chunks.min(rows) };
            let (mut of_rank, mut of_all) = (0, 0);
            for (mine, all) in chunked.chunks() {
                prop_assert_eq!((mine.start, all.start), (of_rank, of_all));
                prop_assert!(!mine.is_empty() && all.len() == ranks * mine.len());
                (of_rank, of_all) = (mine.end, all.end);
            }
            prop_assert_eq!((of_rank, of_all), (rows, ranks * rows));
        }
    }
}
