//! Executes a schedule: one loop with one match. One rank runs the same loop as many.

use crate::backend::{Acc, Backend};
use crate::clock::{Clock, Phase};
use crate::grads::{Grads, Reduce};
use crate::schedule::Action;
use crate::stage::{DeviceBatch, Stage};

/// Runs all micro-batches of a step; `batch(mb)` brings them as they are needed. The last backward
/// sends the gradients. The losses are added to `totals` `[1, 3]`.
pub fn run<B: Backend, E>(
    b: &B,
    actions: &[Action],
    stage: &mut Stage<B>,
    grads: &mut Grads<B>,
    reduce: &Reduce<B>,
    totals: &mut Acc<B>,
    clock: &mut Clock,
    mut batch: impl FnMut(usize) -> Result<DeviceBatch<B>, E>,
) -> Result<(), E> {
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
                stage.backward(b, None, grads, last.then_some(reduce));
            }
        }
    }
    Ok(())
}
