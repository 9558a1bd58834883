//! Where a step's time went, phase by phase.

use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
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

/// Seconds by phase; entering one ends the one before.
pub struct Clock {
    seconds: [f64; Phase::ALL.len()],
    phase: Phase,
    since: Instant,
    place: Arc<Whereabouts>,
}

impl Clock {
    pub fn start(phase: Phase) -> Self {
        Clock::of(Arc::default(), phase)
    }

    /// A clock that tells `place` of every phase.
    pub fn of(place: Arc<Whereabouts>, phase: Phase) -> Self {
        place.phase.store(phase as usize, Relaxed);
        Clock { seconds: [0.0; Phase::ALL.len()], phase, since: Instant::now(), place }
    }

    pub fn enter(&mut self, phase: Phase) {
        let now = Instant::now();
        self.seconds[self.phase as usize] += (now - self.since).as_secs_f64();
        (self.phase, self.since) = (phase, now);
        self.place.phase.store(phase as usize, Relaxed);
    }

    /// The step that begins, for whoever asks where this rank is.
    pub fn step(&self, step: u64) {
        self.place.step.store(step, Relaxed);
    }

    /// Ends the last phase: seconds of each. The clock starts again in `phase`.
    pub fn lap(&mut self, phase: Phase) -> [(Phase, f64); Phase::ALL.len()] {
        self.enter(phase);
        let seconds = std::mem::take(&mut self.seconds);
        Phase::ALL.map(|phase| (phase, seconds[phase as usize]))
    }
}

/// Where a rank is, to be told by whoever ends it.
#[derive(Debug, Default)]
pub struct Whereabouts {
    /// Its number in the run.
    rank: AtomicUsize,
    /// 0: before the first.
    step: AtomicU64,
    phase: AtomicUsize,
}

impl Whereabouts {
    pub fn is_rank(&self, rank: usize) {
        self.rank.store(rank, Relaxed);
    }

    pub fn rank(&self) -> usize {
        self.rank.load(Relaxed)
    }
}

impl Display for Whereabouts {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_says_where_it_is_and_starts_again() {
        let place = Arc::new(Whereabouts::default());
        let mut clock = Clock::of(place.clone(), Phase::Data);
        assert_eq!(place.to_string(), "before the first step");
        clock.step(7);
        clock.enter(Phase::Backward);
        assert_eq!(place.to_string(), "step 7, backward");
        let first: f64 = clock.lap(Phase::Checkpoint).iter().map(|(_, seconds)| seconds).sum();
        assert!(first > 0.0);
        assert_eq!(place.to_string(), "step 7, checkpoint");
        assert!(clock.lap(Phase::Data).iter().filter(|(_, seconds)| *seconds > 0.0).count() <= 1);
    }
}
