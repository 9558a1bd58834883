//! A trace of the parts of a step.

use crate::backend::{Part, Span, Track};
use std::cell::RefCell;
use std::time::Instant;

/// The trace under way, if any.
#[derive(Default)]
pub struct Spans(RefCell<Option<(Instant, Vec<Span>)>>);

impl Spans {
    pub fn begin(&self) {
        *self.0.borrow_mut() = Some((Instant::now(), Vec::new()));
    }

    pub fn end(&self) -> Vec<Span> {
        self.0.borrow_mut().take().map_or(Vec::new(), |(_, spans)| spans)
    }

    pub fn around<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let Some(begun) = self.0.borrow().as_ref().map(|(begun, _)| *begun) else {
            return work();
        };
        let start = begun.elapsed().as_secs_f64();
        let done = work();
        let span = Span { track: Track::Parts, name: part.to_string(), start, end: begun.elapsed().as_secs_f64() };
        if let Some((_, spans)) = &mut *self.0.borrow_mut() {
            spans.push(span);
        }
        done
    }
}
