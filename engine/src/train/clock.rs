//! Where a step's time went, phase by phase, as the backend's moments tell it: on a device the times are its own.

use crate::backend::Backend;
use crate::time::{Phase, RankProgress};
use std::sync::Arc;

/// When each phase began; entering one ends the one before.
pub struct Clock<B: Backend> {
    marks: Vec<(Phase, B::Event)>,
    place: Arc<RankProgress>,
}

/// The phases from one lap to the next.
pub struct Lap<B: Backend> {
    marks: Vec<(Phase, B::Event)>,
    end: B::Event,
}

impl<B: Backend> Clock<B> {
    pub fn start(b: &B, phase: Phase) -> Self {
        Clock::of(b, Arc::default(), phase)
    }

    /// A clock that tells `place` of every phase.
    pub fn of(b: &B, place: Arc<RankProgress>, phase: Phase) -> Self {
        place.enter(phase);
        Clock { marks: vec![(phase, b.record_event())], place }
    }

    pub fn enter(&mut self, b: &B, phase: Phase) {
        self.marks.push((phase, b.record_event()));
        self.place.enter(phase);
    }

    /// The step that begins, for whoever asks where this rank is.
    pub fn step(&self, step: u64) {
        self.place.step(step);
    }

    /// Ends the last phase. The clock starts again in `phase`.
    pub fn lap(&mut self, b: &B, phase: Phase) -> Lap<B> {
        let end = b.record_event();
        self.place.enter(phase);
        let marks = std::mem::replace(&mut self.marks, vec![(phase, end.clone())]);
        Lap { marks, end }
    }
}

impl<B: Backend> Lap<B> {
    /// Seconds of each phase. Blocks until the lap is over.
    pub fn seconds(&self, b: &B) -> [(Phase, f64); Phase::ALL.len()] {
        let mut seconds = [0.0; Phase::ALL.len()];
        let ends = self.marks.iter().skip(1).map(|(_, moment)| moment).chain([&self.end]);
        for ((phase, from), to) in self.marks.iter().zip(ends) {
            seconds[*phase as usize] += b.elapsed(from, to);
        }
        Phase::ALL.map(|phase| (phase, seconds[phase as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    #[test]
    fn a_clock_says_where_it_is_and_starts_again() {
        let (b, place) = (Cpu::<f32>::new(1), Arc::new(RankProgress::default()));
        let mut clock = Clock::of(&b, place.clone(), Phase::Data);
        assert_eq!(place.to_string(), "before the first step");
        clock.step(7);
        clock.enter(&b, Phase::Backward);
        assert_eq!(place.to_string(), "step 7, backward");
        let first: f64 = clock.lap(&b, Phase::Checkpoint).seconds(&b).iter().map(|(_, seconds)| seconds).sum();
        assert!(first > 0.0);
        assert_eq!(place.to_string(), "step 7, checkpoint");
        let second = clock.lap(&b, Phase::Data).seconds(&b);
        assert!(second.iter().filter(|(_, seconds)| *seconds > 0.0).count() <= 1);
    }
}
