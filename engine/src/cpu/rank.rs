//! The CPU backend of one rank: how it is made, and what every op begins with.

use super::shapes::data;
use super::spans::Spans;
use super::workers::Workers;
use super::{Cpu, Float, Progress};
use crate::backend::{Acc, Backend, Elem, Tensor};
use crate::mpi::Comm;
use std::marker::PhantomData;
use std::rc::Rc;

impl<A: Float> Cpu<A> {
    /// Computes on `threads` cores, the one that calls among them, without other ranks.
    pub fn new(threads: usize) -> Self {
        let (pool, workers, progress) = (Rc::default(), Workers::new(threads), Progress::default());
        Cpu { pool, workers, progress, world: None, pieces: 1, spans: Spans::default(), act: PhantomData }
    }

    /// One of the ranks of `world`.
    pub fn of(world: Rc<Comm>, threads: usize) -> Self {
        Cpu { world: Some(world), ..Cpu::new(threads) }
    }

    /// With rows cut into so many pieces where they travel while they are multiplied, as devices cut them. Nothing is
    /// gained by it here; the results are the same bits.
    pub fn in_pieces(self, pieces: usize) -> Self {
        Cpu { pieces, ..self }
    }

    /// What x holds.
    pub fn download<T: Elem>(&self, x: &Tensor<Self, T>) -> Vec<T> {
        data(x).to_vec()
    }

    /// The start of every op: lets MPI move what is in flight.
    pub(super) fn workers(&self) -> &Workers {
        self.progress.poke();
        &self.workers
    }

    pub(super) fn scalars(&self, values: &[f32]) -> Acc<Self> {
        self.upload(values, 1, values.len())
    }
}
