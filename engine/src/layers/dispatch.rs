//! Moves the rows of tokens to the experts that they chose, and back. Choices are sorted by expert; where several ranks
//! share the experts, each sends the rest of its rows to the ranks of their experts (GShard, Lepikhin et al. 2021). A
//! rank has memory for R rows, planned by `parallel.expert_buffer`: further rows are done in further rounds, in the
//! same memory. Only this file, and what `selective` keeps (`moe::Saved::slim`), depend on whether several ranks share
//! the experts.

use super::moe::Shape;
use crate::backend::{Act, Backend, Collectives, Elem, Groups, Sorted, Tensor, TensorView, TensorViewMut};
use crate::layout::rounds::{Counts, Round};
use std::ops::Range;

/// A matrix with memory for R rows, of which the first are in use.
pub struct Rows<B: Backend, T: Elem> {
    block: Tensor<B, T>,
    used: usize,
}

impl<B: Backend, T: Elem> Rows<B, T> {
    pub fn cols(&self) -> usize {
        self.block.cols()
    }

    pub fn used(&self) -> TensorView<'_, B, T> {
        self.block.view_rows(0..self.used)
    }

    pub fn used_mut(&mut self) -> TensorViewMut<'_, B, T> {
        self.block.view_rows_mut(0..self.used)
    }

    /// A matrix of as many rows with unspecified contents.
    pub fn alike<U: Elem>(&self, b: &B, cols: usize) -> Rows<B, U> {
        Rows { block: b.alloc(self.block.rows(), cols), used: self.used }
    }
}

/// Where the rows of a micro-batch go.
pub struct Dispatch<B: Backend> {
    sorted: Sorted<B>,
    rounds: Rounds,
    /// R.
    rows: usize,
}

enum Rounds {
    /// All experts are here: a round is a range of the sorted choices.
    Here(Vec<Range<usize>>),
    Shared(Vec<Round>),
}

/// One round, with its indices in the backend's memory.
pub struct InRound<'d, B: Backend> {
    d: &'d Dispatch<B>,
    b: &'d B,
    m: &'d Shape<'d, B>,
    kind: Kind<'d, B>,
}

enum Kind<'d, B: Backend> {
    /// A range of the sorted choices.
    Here(Range<usize>),
    Shared {
        round: &'d Round,
        /// [`Round::order`], [`Round::places`] and [`Round::counts`]; the first two with memory for R rows.
        order: Rows<B, u32>,
        places: Rows<B, u32>,
        counts: Tensor<B, u32>,
    },
}

impl<B: Backend> Dispatch<B> {
    /// The rounds of choices `[T, k]`. Where several ranks share the experts, the host waits for the number of choices
    /// of each expert on each rank.
    pub fn new(b: &B, m: &Shape<B>, choices: &Tensor<B, u32>) -> Self {
        let (sorted, rows) = (b.sort_choices(choices, m.experts), m.rows(choices.len()));
        let (ranks, rank) = (m.group.size(), m.group.rank());
        if ranks == 1 {
            let all = choices.len();
            let rounds = (0..all).step_by(rows).map(|first| first..all.min(first + rows)).collect();
            return Dispatch { sorted, rounds: Rounds::Here(rounds), rows };
        }
        let all = m.group.all_gather(b, b.copy(&sorted.counts)).wait();
        let planned = |imbalance| Counts::planned(choices.len(), m.experts, ranks, rank, imbalance).into_vec();
        let counts = Counts::new(b.counts_on_host(&all, planned), ranks);
        let rounds = (0..counts.rounds(rows)).map(|round| counts.round(rank, round, rows)).collect();
        Dispatch { sorted, rounds: Rounds::Shared(rounds), rows }
    }

    /// The number of rounds.
    pub fn rounds(&self) -> usize {
        match &self.rounds {
            Rounds::Here(rounds) => rounds.len(),
            Rounds::Shared(rounds) => rounds.len(),
        }
    }

    /// Whether all rows are this rank's own.
    pub fn is_local(&self) -> bool {
        matches!(self.rounds, Rounds::Here(_))
    }

    /// The place of each choice, `[T, k]`.
    pub fn places(&self) -> &Tensor<B, u32> {
        &self.sorted.places
    }

    /// Uploads the indices of a round.
    pub fn round<'d>(&'d self, b: &'d B, m: &'d Shape<'d, B>, round: usize) -> InRound<'d, B> {
        let kind = match &self.rounds {
            Rounds::Here(rounds) => Kind::Here(rounds[round].clone()),
            Rounds::Shared(rounds) => {
                let round = &rounds[round];
                let [order, places] = [&round.order, &round.places].map(|index| self.uploaded(b, index));
                Kind::Shared { round, order, places, counts: b.upload(&round.counts, 1, round.counts.len()) }
            }
        };
        InRound { d: self, b, m, kind }
    }

    fn uploaded(&self, b: &B, index: &[u32]) -> Rows<B, u32> {
        let mut rows = Rows { block: b.alloc(self.rows, 1), used: index.len() };
        b.write(index, &mut rows.used_mut());
        rows
    }

    /// Memory for the rows that the experts return, one for each choice, unless the rows that they compute are these.
    pub fn returned<T: Elem>(&self, b: &B, cols: usize) -> Option<Tensor<B, T>> {
        let one = matches!(&self.rounds, Rounds::Here(rounds) if rounds.len() == 1);
        (!one).then(|| b.alloc(self.sorted.order.len(), cols))
    }
}

impl<B: Backend> InRound<'_, B> {
    /// The experts of the rows.
    pub fn groups(&self) -> Groups<'_, B> {
        match &self.kind {
            Kind::Here(choices) => Groups { counts: &self.d.sorted.counts, first: choices.start },
            Kind::Shared { counts, .. } => Groups { counts, first: 0 },
        }
    }

    /// The rows of x that this rank's experts compute, sorted by expert; `per` choices belong to a row.
    pub fn to_experts<T: Elem>(&self, x: &Tensor<B, T>, per: usize) -> Rows<B, T> {
        let (b, sorted, here) = (self.b, &self.d.sorted.order, self.b.alloc(self.d.rows, x.cols()));
        match &self.kind {
            Kind::Here(choices) => {
                let mut rows = Rows { block: here, used: choices.len() };
                b.take_rows(x, &sorted.view_rows(choices.clone()), per, &mut rows.used_mut());
                rows
            }
            Kind::Shared { round, order, .. } => {
                let mut rows = b.alloc(sorted.len(), x.cols());
                b.take_rows(x, sorted, per, &mut rows);
                let arrived = self.m.group.all_to_all(b, rows, &round.sent, here, &round.received).wait();
                self.permuted(arrived, order)
            }
        }
    }

    /// Puts the rows that this rank's experts computed into their places among the sorted choices.
    pub fn from_experts<T: Elem>(&self, y: Rows<B, T>, to: Option<Tensor<B, T>>) -> Option<Tensor<B, T>> {
        let Some(mut to) = to else { return Some(y.block) };
        match &self.kind {
            Kind::Here(choices) => {
                self.b.copy_to(&y.used(), &mut to.view_rows_mut(choices.clone()));
                Some(to)
            }
            Kind::Shared { round, places, .. } => {
                let y = self.permuted(y.block, places);
                Some(self.m.group.all_to_all(self.b, y.block, &round.received, to, &round.sent).wait())
            }
        }
    }

    /// Row i of the result is row `index[i]` of x.
    fn permuted<T: Elem>(&self, x: Tensor<B, T>, index: &Rows<B, u32>) -> Rows<B, T> {
        let mut y = index.alike(self.b, x.cols());
        self.b.take_rows(&x, &index.used(), 1, &mut y.used_mut());
        y
    }
}

/// The sum of the rows of each token, `[T k, D] -> [T, D]`.
pub fn sum<B: Backend>(b: &B, d: &Dispatch<B>, rows: Option<Act<B>>) -> Act<B> {
    b.sum_rows(&rows.expect("there is at least one round"), d.places())
}
