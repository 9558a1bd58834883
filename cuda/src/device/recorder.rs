//! A timed trace of the device's work, by an event before and one after everything that is enqueued.

use super::Device;
use super::stream::{Event, Stream, Timing};
use engine::backend::{Detail, Label, Span, Track};
use std::cell::RefCell;

/// The trace being recorded, if any.
#[derive(Default)]
pub struct Recorder(RefCell<Option<Trace>>);

struct Trace {
    detail: Detail,
    begun: Event,
    spans: Vec<Raw>,
}

struct Raw {
    track: Track,
    label: Label,
    from: Event,
    to: Event,
}

impl Device {
    /// Starts recording the operations that are enqueued, at this level of detail.
    pub fn begin_trace(&self, detail: Detail) {
        let begun = self.events.record(&self.stream, Timing::Enabled).ok();
        *self.recorder.0.borrow_mut() = begun.map(|begun| Trace { detail, begun, spans: Vec::new() });
    }

    /// Ends the recording, waits for its work, and returns the spans; a device with a fault has none.
    pub fn end_trace(&self) -> Vec<Span> {
        let Some(Trace { begun, spans, .. }) = self.recorder.0.borrow_mut().take() else { return Vec::new() };
        let span = |Raw { track, label, from, to }: Raw| {
            to.wait().ok()?;
            let at = |event: &Event| event.seconds_since(&begun).ok();
            Some(Span { track, label, start: at(&from)?, end: at(&to)? })
        };
        spans.into_iter().filter_map(span).collect()
    }

    /// Runs `work`, which enqueues something on the stream. A trace of at least this detail records it.
    pub fn recorded<T>(
        &self,
        least: Detail,
        track: Track,
        label: impl FnOnce() -> Label,
        stream: &Stream,
        work: impl FnOnce() -> T,
    ) -> T {
        if self.recorder.0.borrow().as_ref().is_none_or(|trace| trace.detail < least) {
            return work();
        }
        let from = self.events.record(stream, Timing::Enabled);
        let done = work();
        let to = self.events.record(stream, Timing::Enabled);
        if let (Ok(from), Ok(to), Some(trace)) = (from, to, &mut *self.recorder.0.borrow_mut()) {
            trace.spans.push(Raw { track, label: label(), from, to });
        }
        done
    }
}
