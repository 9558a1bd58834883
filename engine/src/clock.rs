//! Where a step's time went, phase by phase.

use std::time::Instant;

/// The parts of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Data,
    Forward,
    Backward,
    /// Waiting for other stages.
    Pipeline,
    /// Waiting for the gradients' reduce-scatter.
    Reduce,
    Optimizer,
    Validation,
    Checkpoint,
}

impl Phase {
    pub const ALL: [Phase; 8] = [
        Phase::Data,
        Phase::Forward,
        Phase::Backward,
        Phase::Pipeline,
        Phase::Reduce,
        Phase::Optimizer,
        Phase::Validation,
        Phase::Checkpoint,
    ];

    /// As in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Data => "data_s",
            Phase::Forward => "forward_s",
            Phase::Backward => "backward_s",
            Phase::Pipeline => "pipeline_s",
            Phase::Reduce => "reduce_s",
            Phase::Optimizer => "optimizer_s",
            Phase::Validation => "validation_s",
            Phase::Checkpoint => "checkpoint_s",
        }
    }
}

/// Seconds by phase; entering one ends the one before.
pub struct Clock {
    seconds: [f64; Phase::ALL.len()],
    phase: Phase,
    since: Instant,
}

impl Clock {
    pub fn start(phase: Phase) -> Self {
        Clock { seconds: [0.0; Phase::ALL.len()], phase, since: Instant::now() }
    }

    pub fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        self.seconds[self.phase as usize] += (now - self.since).as_secs_f64();
        (self.phase, self.since) = (phase, now);
    }

    /// Ends the last phase: seconds of each.
    pub fn stop(mut self) -> [(Phase, f64); Phase::ALL.len()] {
        self.enter(self.phase);
        Phase::ALL.map(|phase| (phase, self.seconds[phase as usize]))
    }
}
