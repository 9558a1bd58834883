//! A trace of what the device does: an event before and one behind everything that is started.

use super::Device;
use super::stream::{Event, Knows, Stream};
use engine::backend::{Detail, Label, Span, Track};
use std::cell::RefCell;

/// The trace under way, if any.
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
    /// From now on what is started is remembered with its times, as far as `detail` says.
    pub fn begin_trace(&self, detail: Detail) {
        let begun = self.events.record(&self.stream, Knows::Time).ok();
        *self.recorder.0.borrow_mut() = begun.map(|begun| Trace { detail, begun, spans: Vec::new() });
    }

    /// What was started since, once it is done; a device with a fault has no times.
    pub fn end_trace(&self) -> Vec<Span> {
        let Some(Trace { begun, spans, .. }) = self.recorder.0.borrow_mut().take() else { return Vec::new() };
        let span = |Raw { track, label, from, to }: Raw| {
            to.wait().ok()?;
            let at = |event: &Event| event.seconds_since(&begun).ok();
            Some(Span { track, label, start: at(&from)?, end: at(&to)? })
        };
        spans.into_iter().filter_map(span).collect()
    }

    /// Does `work`, which starts something on the stream, and which a trace of at least this detail remembers.
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
        let from = self.events.record(stream, Knows::Time);
        let done = work();
        let to = self.events.record(stream, Knows::Time);
        if let (Ok(from), Ok(to), Some(trace)) = (from, to, &mut *self.recorder.0.borrow_mut()) {
            trace.spans.push(Raw { track, label: label(), from, to });
        }
        done
    }
}
