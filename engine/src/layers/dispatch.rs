//! Moves the rows of tokens to the experts that they chose, and back. Choices are sorted by expert; where several ranks
//! share the experts, each sends the rest of its rows to the ranks of their experts (GShard, Lepikhin et al. 2021). A
//! rank has memory for R rows, planned by `parallel.expert_buffer`: further rows are done in further rounds, in the
//! same memory. This is the only file that depends on whether several ranks share the experts.

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

/// The number of rows of each expert in a round.
pub enum Counted<'a, B: Backend> {
    /// Of all sorted choices, of which the round begins with this one.
    All(&'a Tensor<B, u32>, usize),
    Round(Tensor<B, u32>),
}

impl<B: Backend> Counted<'_, B> {
    pub fn groups(&self) -> Groups<'_, B> {
        match self {
            Counted::All(counts, first) => Groups { counts, first: *first },
            Counted::Round(counts) => Groups { counts, first: 0 },
        }
    }
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

    /// The place of each choice, `[T, k]`.
    pub fn places(&self) -> &Tensor<B, u32> {
        &self.sorted.places
    }

    pub fn counted(&self, b: &B, round: usize) -> Counted<'_, B> {
        match &self.rounds {
            Rounds::Here(rounds) => Counted::All(&self.sorted.counts, rounds[round].start),
            Rounds::Shared(rounds) => Counted::Round(b.upload(&rounds[round].counts, 1, rounds[round].counts.len())),
        }
    }

    /// The rows of x that this rank's experts compute in a round, sorted by expert; `per` choices belong to a row.
    pub fn to_experts<T: Elem>(&self, b: &B, m: &Shape<B>, x: &Tensor<B, T>, per: usize, round: usize) -> Rows<B, T> {
        let (order, mut here) = (&self.sorted.order, b.alloc(self.rows, x.cols()));
        match &self.rounds {
            Rounds::Here(rounds) => {
                let (round, used) = (rounds[round].clone(), rounds[round].len());
                b.take_rows(x, &order.view_rows(round), per, &mut here.view_rows_mut(0..used));
                Rows { block: here, used }
            }
            Rounds::Shared(rounds) => {
                let Round { sent, received, order: by_expert, .. } = &rounds[round];
                let mut rows = b.alloc(order.len(), x.cols());
                b.take_rows(x, order, per, &mut rows);
                let arrived = m.group.all_to_all(b, rows, sent, here, received).wait();
                self.permuted(b, arrived, by_expert)
            }
        }
    }

    /// Memory for what the experts give back, if it is not what they computed: with a row of `cols` for each choice.
    pub fn returned<T: Elem>(&self, b: &B, cols: usize) -> Option<Tensor<B, T>> {
        let one = matches!(&self.rounds, Rounds::Here(rounds) if rounds.len() == 1);
        (!one).then(|| b.alloc(self.sorted.order.len(), cols))
    }

    /// Puts the rows that this rank's experts computed in a round into their places among the sorted choices.
    pub fn from_experts<T: Elem>(
        &self,
        b: &B,
        m: &Shape<B>,
        y: Rows<B, T>,
        round: usize,
        to: Option<Tensor<B, T>>,
    ) -> Option<Tensor<B, T>> {
        let Some(mut to) = to else { return Some(y.block) };
        match &self.rounds {
            Rounds::Here(rounds) => {
                b.copy_to(&y.used(), &mut to.view_rows_mut(rounds[round].clone()));
                Some(to)
            }
            Rounds::Shared(rounds) => {
                let Round { sent, received, places, .. } = &rounds[round];
                let y = self.permuted(b, y.block, places);
                Some(m.group.all_to_all(b, y.block, received, to, sent).wait())
            }
        }
    }

    /// Row i of the result is row `index[i]` of x.
    fn permuted<T: Elem>(&self, b: &B, x: Tensor<B, T>, index: &[u32]) -> Rows<B, T> {
        let (mut y, mut on_device) = (b.alloc(self.rows, x.cols()), b.alloc(self.rows, 1));
        let used = 0..index.len();
        b.write(index, &mut on_device.view_rows_mut(used.clone()));
        b.take_rows(&x, &on_device.view_rows(used.clone()), 1, &mut y.view_rows_mut(used));
        Rows { block: y, used: index.len() }
    }
}

/// The sum of the rows of each token, `[T k, D] -> [T, D]`.
pub fn sum<B: Backend>(b: &B, d: &Dispatch<B>, rows: Option<Act<B>>) -> Act<B> {
    b.sum_rows(&rows.expect("there is at least one round"), d.places())
}
