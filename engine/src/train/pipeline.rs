//! Executes a schedule, action by action. One rank runs the same loop as many.

use crate::backend::{Acc, Act, Backend, Collectives, Exchanged, Expected, Pending, Scope};
use crate::batch::MicroBatch;
use crate::schedule::{Action, Direction, Pipe, Work};
use crate::stage::grads::{Grads, Reduce};
use crate::stage::{Stage, Sums};
use crate::time::Phase;
use crate::train::clock::Clock;

/// The buffers that the micro-batches of a step accumulate into.
pub struct StepAccumulators<'a, B: Backend> {
    pub grads: &'a mut Grads<B>,
    pub sums: &'a mut Sums<B>,
    /// How gradients are reduced after the last backward of a chunk.
    pub reduce: &'a Reduce<B>,
}

/// A stage's position in the pipeline, and its point-to-point channels to the stages around it.
pub struct PipelineComm<B: Backend> {
    pub stage: usize,
    pub pipe: Pipe,
    /// Rows and columns of a message, `[T/tp, D]`.
    pub shape: (usize, usize),
    pub activations: Channel<B>,
    pub gradients: Channel<B>,
}

/// The messages of one direction. The group's ranks are the stages.
pub struct Channel<B: Backend> {
    group: B::Group,
    /// The input of the next work, in flight.
    receiving: Option<(Work, Pending<B, B::Act>)>,
    /// The last output, not yet sent.
    ready: Option<(Work, Act<B>)>,
    sending: Option<Pending<B, B::Act>>,
}

/// Runs forward and backward of all micro-batches of a step. `batch(mb)` loads a micro-batch when it is needed.
pub fn run<B: Backend, E>(
    b: &B,
    actions: &[Action],
    stage: &mut Stage<B>,
    comm: &mut PipelineComm<B>,
    sums: StepAccumulators<B>,
    clock: &mut Clock<B>,
    mut batch: impl FnMut(usize) -> Result<MicroBatch, E>,
) -> Result<(), E> {
    let StepAccumulators { grads, sums, reduce } = sums;
    let mut last = last_backwards(actions, comm.pipe.chunks);
    for (i, action) in actions.iter().enumerate() {
        match *action {
            Action::Forward(work) => {
                clock.enter(b, Phase::Data);
                let batch = stage.upload(b, work.chunk, &batch(work.mb)?);
                clock.enter(b, Phase::Pipeline);
                let x = comm.activations.input(work);
                let Work { chunk, mb } = work;
                let forward = || stage.forward(b, chunk, batch, x, grads, sums);
                let y = clock.scope(b, Scope::Forward { chunk, mb }, forward);
                comm.activations.ready = y.map(|y| (work, y));
            }
            Action::Backward(work) => {
                clock.enter(b, Phase::Pipeline);
                let dy = comm.gradients.input(work);
                let reduce = (last[work.chunk].take_if(|last| *last == i)).map(|_| reduce);
                let Work { chunk, mb } = work;
                let backward = || stage.backward(b, chunk, dy, grads, sums, reduce);
                let dx = clock.scope(b, Scope::Backward { chunk, mb }, backward);
                comm.gradients.ready = dx.map(|dx| (work, dx));
            }
            Action::SendRecv { direction, send, recv } => comm.send_recv(b, direction, send, recv),
        }
    }
    clock.enter(b, Phase::Pipeline);
    comm.wait_sent();
    Ok(())
}

/// Gets the number of a micro-batch, and statistics and weights of a chunk of its targets (see `head::evaluate`).
pub type EachLoss<'a, B> = &'a mut dyn FnMut(usize, &Acc<B>, &Acc<B>);

/// Runs the forwards alone, for the losses, which `each` gets on the last stage.
pub fn evaluate<B: Backend, E>(
    b: &B,
    actions: &[Action],
    stage: &mut Stage<B>,
    comm: &mut PipelineComm<B>,
    each: EachLoss<B>,
    mut batch: impl FnMut(usize) -> Result<MicroBatch, E>,
) -> Result<(), E> {
    for action in actions {
        match *action {
            Action::Forward(work) => {
                let batch = stage.upload(b, work.chunk, &batch(work.mb)?);
                let x = comm.activations.input(work);
                let Work { chunk, mb } = work;
                let mut each = |stats: &Acc<B>, weights: &Acc<B>| each(mb, stats, weights);
                let y = b.scope(Scope::Validation { chunk, mb }, || stage.evaluate(b, chunk, &batch, x, &mut each));
                comm.activations.ready = y.map(|y| (work, y));
            }
            Action::Backward(work) => panic!("{work:?} is a backward in a validation"),
            Action::SendRecv { direction, send, recv } => comm.send_recv(b, direction, send, recv),
        }
    }
    comm.wait_sent();
    Ok(())
}

/// The index of each chunk's last backward, after which its gradients are complete.
fn last_backwards(actions: &[Action], chunks: usize) -> Vec<Option<usize>> {
    let is_of = |chunk, action: &Action| matches!(action, Action::Backward(work) if work.chunk == chunk);
    (0..chunks).map(|chunk| actions.iter().rposition(|action| is_of(chunk, action))).collect()
}

impl<B: Backend> PipelineComm<B> {
    /// Starts the transfers of a `SendRecv`, after the previous send in its direction has completed.
    fn send_recv(&mut self, b: &B, direction: Direction, send: Option<Work>, recv: Option<Work>) {
        let (pipe, stage, shape) = (self.pipe, self.stage, self.shape);
        let before = |work: Work| pipe.before(stage, work.chunk).expect("the first chunk receives nothing").0;
        let after = |work: Work| pipe.after(stage, work.chunk).expect("the last chunk sends nothing").0;
        let (from, to, channel): (&dyn Fn(Work) -> usize, &dyn Fn(Work) -> usize, _) = match direction {
            Direction::Activations => (&before, &after, &mut self.activations),
            Direction::Gradients => (&after, &before, &mut self.gradients),
        };
        channel.wait_sent();
        let send = send.map(|work| (channel.output(work), to(work)));
        let expected = recv.map(|work| Expected { rows: shape.0, cols: shape.1, from: from(work) });
        let Exchanged { sent, received } = channel.group.exchange(b, send, expected);
        channel.sending = sent;
        channel.receiving = recv.zip(received);
    }

    /// Waits for the sends in flight.
    fn wait_sent(&mut self) {
        self.activations.wait_sent();
        self.gradients.wait_sent();
    }
}

impl<B: Backend> Channel<B> {
    pub fn new(group: B::Group) -> Self {
        Channel { group, receiving: None, ready: None, sending: None }
    }

    /// The input of a work; `None` if it does not come from another stage.
    fn input(&mut self, work: Work) -> Option<Act<B>> {
        let (expected, pending) = self.receiving.take()?;
        assert_eq!(expected, work, "the input that was received and the work that reads it");
        Some(pending.wait())
    }

    /// The output of a work, which has not been sent yet.
    fn output(&mut self, work: Work) -> Act<B> {
        let (made, y) = self.ready.take().unwrap_or_else(|| panic!("no output is ready for {work:?}"));
        assert_eq!(made, work, "the output that is ready and the one to send");
        y
    }

    fn wait_sent(&mut self) {
        if let Some(sending) = self.sending.take() {
            sending.wait();
        }
    }
}
