//! The parts of a step's time, and where a rank is in them.

use std::fmt::{Display, Formatter};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

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
    /// Writing what the step showed.
    Report,
    Checkpoint,
}

impl Phase {
    pub const ALL: [Phase; 9] = [
        Phase::Data,
        Phase::Forward,
        Phase::Backward,
        Phase::Pipeline,
        Phase::Reduce,
        Phase::Optimizer,
        Phase::Validation,
        Phase::Report,
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
            Phase::Report => "report_s",
            Phase::Checkpoint => "checkpoint_s",
        }
    }
}

/// Where a rank is, to be told by whoever ends it.
#[derive(Debug, Default)]
pub struct RankProgress {
    /// Its number in the run.
    rank: AtomicUsize,
    /// 0: before the first.
    step: AtomicU64,
    phase: AtomicUsize,
}

impl RankProgress {
    pub fn is_rank(&self, rank: usize) {
        self.rank.store(rank, Relaxed);
    }

    pub fn rank(&self) -> usize {
        self.rank.load(Relaxed)
    }

    /// The step that begins.
    pub fn step(&self, step: u64) {
        self.step.store(step, Relaxed);
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as usize, Relaxed);
    }
}

impl Display for RankProgress {
    fn fmt(&self, f: &mut Formatter) -> std::fmt::Result {
        match self.step.load(Relaxed) {
            0 => write!(f, "before the first step"),
            step => {
                let phase = Phase::ALL[self.phase.load(Relaxed)].name();
                write!(f, "step {step}, {}", phase.trim_end_matches("_s"))
            }
        }
    }
}
