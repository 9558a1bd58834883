//! The time of a step by phase, from the backend's events: on a device it is the device's time, not the host's.

use crate::backend::{Backend, Scope};
use crate::flight::Recorder;
use crate::time::Phase;
use std::sync::Arc;

/// When each phase began. Entering a phase ends the one before.
pub struct Clock<B: Backend> {
    marks: Vec<(Phase, B::Event)>,
    recorder: Arc<Recorder>,
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

    /// A clock that records every phase.
    pub fn of(b: &B, recorder: Arc<Recorder>, phase: Phase) -> Self {
        recorder.enter(phase);
        Clock { marks: vec![(phase, b.record_event())], recorder }
    }

    pub fn enter(&mut self, b: &B, phase: Phase) {
        self.marks.push((phase, b.record_event()));
        self.recorder.enter(phase);
    }

    /// Enters the phase of `part` and runs `work` as that part, so that metrics and traces have the same borders.
    pub fn scope<T>(&mut self, b: &B, part: Scope, work: impl FnOnce() -> T) -> T {
        let phase = part.phase().unwrap_or_else(|| panic!("{part} belongs to no phase"));
        self.enter(b, phase);
        b.scope(part, work)
    }

    /// Records that `step` begins.
    pub fn step(&self, step: u64) {
        self.recorder.step(step);
    }

    /// Ends the last phase and starts again in `phase`.
    pub fn lap(&mut self, b: &B, phase: Phase) -> Lap<B> {
        let end = b.record_event();
        self.recorder.enter(phase);
        let marks = std::mem::replace(&mut self.marks, vec![(phase, end.clone())]);
        Lap { marks, end }
    }
}

impl<B: Backend> Lap<B> {
    /// Seconds of each phase. Blocks until the lap is over.
    pub fn seconds(&self, b: &B) -> [(Phase, f64); Phase::ALL.len()] {
        let mut seconds = [0.0; Phase::ALL.len()];
        let ends = self.marks.iter().skip(1).map(|(_, start)| start).chain([&self.end]);
        for ((phase, from), to) in self.marks.iter().zip(ends) {
            seconds[*phase as usize] += b.elapsed(from, to);
        }
        Phase::ALL.map(|phase| (phase, seconds[phase as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Detail, Label};
    use crate::cpu::Cpu;

    #[test]
    fn a_clock_notes_the_phase_and_starts_again() {
        let (b, place) = (Cpu::<f32>::new(1), Arc::new(Recorder::default()));
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

    #[test]
    fn a_scope_is_a_phase_and_a_span() {
        let (b, place) = (Cpu::<f32>::new(1), Arc::new(Recorder::default()));
        let mut clock = Clock::of(&b, place.clone(), Phase::Data);
        clock.step(1);
        b.begin_trace(Detail::Parts);
        let inside = clock.scope(&b, Scope::Forward { chunk: 0, mb: 3 }, || place.to_string());
        assert_eq!((inside.as_str(), place.to_string().as_str()), ("step 1, forward", "step 1, forward"));
        let spans = b.end_trace();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].label, Label::Scope(Scope::Forward { chunk: 0, mb: 3 }));
    }
}
