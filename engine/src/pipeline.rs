//! Executes a schedule: one loop with one match. One rank runs the same loop as many.

use crate::backend::{Acc, Backend};
use crate::clock::{Clock, Phase};
use crate::grads::{Grads, Reduce};
use crate::schedule::Action;
use crate::stage::{DeviceBatch, Stage};

/// What the micro-batches of a step add up.
pub struct Sums<'a, B: Backend> {
    pub grads: &'a mut Grads<B>,
    /// The losses, `[1, 3]`.
    pub totals: &'a mut Acc<B>,
    /// How the last backward sends the gradients.
    pub reduce: Reduce<'a, B>,
}

/// Runs all micro-batches of a step; `batch(mb)` brings them as they are needed.
pub fn run<B: Backend, E>(
    b: &B,
    actions: &[Action],
    stage: &mut Stage<B>,
    sums: Sums<B>,
    clock: &mut Clock,
    mut batch: impl FnMut(usize) -> Result<DeviceBatch<B>, E>,
) -> Result<(), E> {
    let Sums { grads, totals, reduce } = sums;
    for (i, action) in actions.iter().enumerate() {
        match *action {
            Action::Forward { mb } => {
                clock.enter(Phase::Data);
                let batch = batch(mb)?;
                clock.enter(Phase::Forward);
                stage.forward(b, batch, None, grads, totals);
            }
            Action::Backward { .. } => {
                clock.enter(Phase::Backward);
                let last = i + 1 == actions.len();
                stage.backward(b, None, grads, last.then_some(&reduce));
            }
        }
    }
    Ok(())
}
