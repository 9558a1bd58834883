//! A collective in flight, which owns its buffers.

use super::{Backend, Elem, Tensor, TensorView, TensorViewMut, Ticket};
use std::collections::VecDeque;
use std::ops::Range;

/// A collective in flight and the tensors that it reads and writes.
#[must_use = "a collective has no result until it is waited for"]
pub struct Pending<B: Backend, T: Elem> {
    /// Its calls in the order in which they were started, each with the output rows that it completes.
    tickets: VecDeque<(B::Ticket, Range<usize>)>,
    input: Option<Tensor<B, T>>,
    output: Option<Tensor<B, T>>,
}

impl<B: Backend, T: Elem> Pending<B, T> {
    /// A collective that is already complete, in a group of one rank.
    pub fn ready(output: Tensor<B, T>) -> Self {
        Pending { tickets: VecDeque::new(), input: None, output: Some(output) }
    }

    /// One call in flight: `input` is read and `output` written until the ticket is waited for.
    pub fn in_flight(ticket: B::Ticket, input: Tensor<B, T>, output: Tensor<B, T>) -> Self {
        let rows = 0..output.rows();
        Pending { tickets: VecDeque::from([(ticket, rows)]), input: Some(input), output: Some(output) }
    }

    /// A collective without calls so far; see [`Pending::start`].
    pub(super) fn of(input: Tensor<B, T>, output: Tensor<B, T>) -> Self {
        Pending { tickets: VecDeque::new(), input: Some(input), output: Some(output) }
    }

    /// Starts a call that reads rows of the input and writes rows of the output.
    pub(super) fn start(
        &mut self,
        from: Range<usize>,
        to: Range<usize>,
        call: impl FnOnce(&Tensor<B, T>, &Tensor<B, T>) -> B::Ticket,
    ) {
        let (input, output) = (self.input.as_ref().expect(OWNED), self.output.as_ref().expect(OWNED));
        self.tickets.push_back((call(&input.view_rows(from), &output.view_rows(to.clone())), to));
    }

    /// Rows of the input that no call reads yet.
    pub(super) fn input_rows(&mut self, rows: Range<usize>) -> TensorViewMut<'_, B, T> {
        self.input.as_mut().expect(OWNED).view_rows_mut(rows)
    }

    /// One call in flight in place: `x` is read by a send, written by a receive, or both by a collective, until the
    /// ticket is waited for.
    pub fn in_place(ticket: B::Ticket, x: Tensor<B, T>) -> Self {
        let rows = 0..x.rows();
        Pending { tickets: VecDeque::from([(ticket, rows)]), input: None, output: Some(x) }
    }

    /// Rows of the output.
    pub fn rows(&self) -> usize {
        self.output.as_ref().expect(OWNED).rows()
    }

    /// Waits for the next call and returns the rows that it completed. None when all calls are complete.
    pub fn next_rows(&mut self) -> Option<(Range<usize>, TensorView<'_, B, T>)> {
        let (ticket, rows) = self.tickets.pop_front()?;
        ticket.wait();
        Some((rows.clone(), self.output.as_ref().expect(OWNED).view_rows(rows)))
    }

    pub fn wait(mut self) -> Tensor<B, T> {
        self.finish();
        self.output.take().expect(OWNED)
    }

    fn finish(&mut self) {
        self.tickets.drain(..).for_each(|(ticket, _)| ticket.wait());
        self.input = None;
    }
}

const OWNED: &str = "a pending collective holds its matrices until it is waited for";

impl<B: Backend, T: Elem> Drop for Pending<B, T> {
    fn drop(&mut self) {
        self.finish();
    }
}
