//! This rank's end of a communicator, with the stream that its calls run on.

use super::pending::{PendingCalls, without_article};
use crate::device::{Device, Event, Stream, Timing};
use crate::nccl::Communicator;
use cudarc::driver::DriverError;
use engine::backend::{Detail, Label, Track};
use engine::flight::{Channel, Recorder};
use engine::layout::mesh::GroupKind;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

pub(super) struct Link {
    pub kind: GroupKind,
    communicator: RefCell<Option<Communicator>>,
    stream: Rc<Stream>,
    /// The unfinished calls, for reports of calls that do not complete.
    pub pending: Arc<PendingCalls>,
    recorder: Arc<Recorder>,
    /// Whether a rank has failed. Then this rank must not wait for any other.
    broken: Cell<bool>,
}

impl Link {
    pub fn new(
        kind: GroupKind,
        communicator: Communicator,
        stream: Rc<Stream>,
        pending: PendingCalls,
        recorder: Arc<Recorder>,
    ) -> Link {
        let (communicator, pending) = (RefCell::new(Some(communicator)), Arc::new(pending));
        Link { kind, communicator, stream, pending, recorder, broken: Cell::new(false) }
    }

    /// Enqueues a call after everything enqueued so far on the compute stream; the event marks its completion.
    pub fn enqueue(
        &self,
        device: &Device,
        what: &'static str,
        bytes: usize,
        call: impl FnOnce(&Communicator, &Stream) -> Result<(), String>,
    ) -> Result<Rc<Event>, String> {
        let failed = |error: DriverError| device.fault(error);
        let ready = device.events().record(device.stream(), Timing::Disabled).map_err(failed)?;
        self.stream.wait(&ready).map_err(failed)?;
        let communicator = self.communicator.borrow();
        let communicator = communicator.as_ref().expect("a link has its communicator until it is dropped");
        let channel = Channel::Group(self.kind);
        let number = self.recorder.start(channel, without_article(what), bytes);
        // NCCL may block here until all ranks are connected.
        let in_call = self.recorder.wait(channel, number, None);
        let label = || Label::Op(format!("{what} of {bytes} bytes"));
        let track = Track::Group(self.kind);
        device.recorded(Detail::Ops, track, label, &self.stream, || call(communicator, &self.stream))?;
        drop(in_call);
        let done = Rc::new(device.events().record(&self.stream, Timing::Disabled).map_err(failed)?);
        self.pending.enqueued(&self.stream, number, what, bytes).map_err(failed)?;
        Ok(done)
    }

    /// An asynchronous error that NCCL has detected.
    pub fn error(&self) -> Result<(), String> {
        self.communicator.borrow().as_ref().map_or(Ok(()), Communicator::error)
    }

    /// Aborts the communicator when this is dropped, instead of waiting for the other ranks.
    pub fn mark_broken(&self) {
        self.broken.set(true);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(communicator) = self.communicator.take() else { return };
        if !self.broken.get() && !std::thread::panicking() {
            // All ranks come here at the end of a run, when an error cannot affect the results any more.
            _ = communicator.finish();
        }
    }
}
