//! The trace of a step: spans of its parts, and of the waits in them.

use crate::backend::{Detail, Label, Span, Track};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

/// The current trace, if any; groups and tickets record into it.
#[derive(Clone, Default)]
pub struct Spans(Rc<RefCell<Option<Trace>>>);

struct Trace {
    detail: Detail,
    begun: Instant,
    spans: Vec<Span>,
}

impl Spans {
    pub fn begin(&self, detail: Detail) {
        *self.0.borrow_mut() = Some(Trace { detail, begun: Instant::now(), spans: Vec::new() });
    }

    pub fn end(&self) -> Vec<Span> {
        self.0.borrow_mut().take().map_or(Vec::new(), |trace| trace.spans)
    }

    /// Runs `work`, and records a span of it if the current trace has at least this detail.
    pub fn around<T>(&self, least: Detail, track: Track, label: impl FnOnce() -> Label, work: impl FnOnce() -> T) -> T {
        let begun = self.0.borrow().as_ref().filter(|trace| trace.detail >= least).map(|trace| trace.begun);
        let Some(begun) = begun else { return work() };
        let start = begun.elapsed().as_secs_f64();
        let done = work();
        let end = begun.elapsed().as_secs_f64();
        if let Some(trace) = &mut *self.0.borrow_mut() {
            trace.spans.push(Span { track, label: label(), start, end });
        }
        done
    }
}
