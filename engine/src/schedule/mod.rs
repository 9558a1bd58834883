//! Pipeline schedules as lists of actions: pure functions of the pipeline's shape, executed by `train/pipeline.rs`. One
//! rank runs the same schedule as many.

mod order;
mod posts;
#[cfg(test)]
mod tests;

/// The two directions of pipeline communication: activations to the next chunk, gradients to the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Activations,
    Gradients,
}

/// One micro-batch through one of the stage's chunks, `0 .. virtual_pipeline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Work {
    pub chunk: usize,
    pub mb: usize,
}

/// One step of a stage's schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    Forward(Work),
    Backward(Work),
    /// Starts a send, a receive or both as one non-blocking group call: `send` is the work of this stage whose output
    /// is sent, `recv` the work of this stage whose input is received. The work that reads the input waits for the
    /// receive; the direction's next `SendRecv` waits for the send.
    SendRecv {
        direction: Direction,
        send: Option<Work>,
        recv: Option<Work>,
    },
}

impl Action {
    /// The work and the direction of its input; `None` for transfers.
    fn work(self) -> Option<(Direction, Work)> {
        match self {
            Action::Forward(work) => Some((Direction::Activations, work)),
            Action::Backward(work) => Some((Direction::Gradients, work)),
            Action::SendRecv { .. } => None,
        }
    }
}

/// The shape of a pipeline. Chunk `c` of stage `s` is number `c * stages + s` of the model's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pipe {
    pub stages: usize,
    /// Chunks of layers that a stage holds.
    pub chunks: usize,
    pub n_mbs: usize,
}

impl Pipe {
    /// (stage, chunk) of the model's previous chunk; `None` for the first chunk, which has the embedding.
    pub fn before(&self, stage: usize, chunk: usize) -> Option<(usize, usize)> {
        let number = self.number(stage, chunk);
        number.checked_sub(1).map(|before| (before % self.stages, before / self.stages))
    }

    /// (stage, chunk) of the model's next chunk; `None` for the last chunk, which has the head.
    pub fn after(&self, stage: usize, chunk: usize) -> Option<(usize, usize)> {
        let after = self.number(stage, chunk) + 1;
        (after < self.stages * self.chunks).then_some((after % self.stages, after / self.stages))
    }

    /// (stage, chunk) that sends the chunk's input in this direction.
    pub fn source(&self, direction: Direction, stage: usize, chunk: usize) -> Option<(usize, usize)> {
        match direction {
            Direction::Activations => self.before(stage, chunk),
            Direction::Gradients => self.after(stage, chunk),
        }
    }

    /// (stage, chunk) that receives the chunk's output in this direction.
    pub fn target(&self, direction: Direction, stage: usize, chunk: usize) -> Option<(usize, usize)> {
        match direction {
            Direction::Activations => self.after(stage, chunk),
            Direction::Gradients => self.before(stage, chunk),
        }
    }

    fn number(&self, stage: usize, chunk: usize) -> usize {
        assert!(stage < self.stages, "stage {stage} of {}", self.stages);
        assert!(chunk < self.chunks, "chunk {chunk} of {}", self.chunks);
        chunk * self.stages + stage
    }
}

/// Forwards and backwards of one step: 1F1B if a stage holds one chunk (with any number of micro-batches), else
/// interleaved 1F1B (with a multiple of the stages).
pub fn train(stage: usize, pipe: &Pipe) -> Vec<Action> {
    let order = match pipe.chunks {
        1 => order::one_f_one_b(stage, pipe),
        _ => order::interleaved(stage, pipe),
    };
    posts::insert(stage, pipe, &order)
}

/// The forwards alone, for validation, with any number of micro-batches.
pub fn forward_only(stage: usize, pipe: &Pipe) -> Vec<Action> {
    posts::insert(stage, pipe, &order::forwards(stage, pipe))
}
