//! Group calls: a thread's calls between `ncclGroupStart` and `ncclGroupEnd` become one plan per communicator.

use super::code::*;
use super::comm::Comm;
use super::plan::{Op, Plan};
use crate::driver::stream;
use crate::settings::settings;
use crate::stream::Stream;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Default)]
struct Group {
    depth: usize,
    calls: Vec<Call>,
    /// Communicators that are being initialized.
    made: Vec<Arc<Comm>>,
}

struct Call {
    comm: Arc<Comm>,
    op: Op,
    stream: Arc<Stream>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

pub fn start() {
    GROUP.with_borrow_mut(|group| group.depth += 1);
}

/// Starts all calls since the outermost start.
pub fn end() -> Outcome<()> {
    let depth = GROUP.with_borrow(|group| group.depth);
    if depth == 0 {
        return Err(fail(INVALID_USAGE, "a group is ended that was not started"));
    }
    let Group { calls, made, .. } = match depth {
        1 => GROUP.take(),
        _ => {
            GROUP.with_borrow_mut(|group| group.depth -= 1);
            return Ok(());
        }
    };
    made.iter().filter(|comm| comm.blocking).try_for_each(|comm| comm.wait_ready())?;
    launch(calls)
}

/// Starts an operation now, or at the end of the group.
pub fn call(comm: Arc<Comm>, op: Op, on: *mut std::ffi::c_void) -> Outcome<()> {
    let stream =
        stream(on).map_err(|code| fail(UNHANDLED_CUDA_ERROR, &format!("the driver returns {code} for a stream")))?;
    if stream.device != comm.device {
        return Err(fail(INVALID_USAGE, "a stream on another device than the communicator's"));
    }
    let op = Op { hangs: hangs(&comm, &op), ..op };
    let call = Call { comm, op, stream };
    GROUP.with_borrow_mut(|group| match group.depth {
        0 => launch(vec![call]),
        _ => {
            group.calls.push(call);
            Ok(())
        }
    })
}

/// Waits for a communicator's initialization, now or at the end of the group.
pub fn make(comm: Arc<Comm>) -> Outcome<()> {
    let grouped = GROUP.with_borrow_mut(|group| {
        let grouped = group.depth > 0;
        group.made.extend(grouped.then(|| comm.clone()));
        grouped
    });
    if grouped || !comm.blocking { Ok(()) } else { comm.wait_ready() }
}

/// Whether a test wants this operation to hang.
fn hangs(comm: &Comm, op: &Op) -> bool {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    let Some((kind, n)) = &settings().hang else { return false };
    let matches = kind == "any" || kind.eq_ignore_ascii_case(&format!("{:?}", op.what.kind));
    comm.rank == 0 && matches && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == *n
}

fn launch(mut calls: Vec<Call>) -> Outcome<()> {
    while let Some(first) = calls.first() {
        let comm = first.comm.clone();
        let (own, others) = calls.into_iter().partition(|call| Arc::ptr_eq(&call.comm, &comm));
        plan(comm, own)?;
        calls = others;
    }
    Ok(())
}

/// Enqueues one plan on the first call's stream. The streams of the other calls join it before and continue after it.
fn plan(comm: Arc<Comm>, calls: Vec<Call>) -> Outcome<()> {
    let plan = Plan { ticket: comm.issue()?, comm, ops: calls.iter().map(|call| call.op).collect() };
    let main = calls[0].stream.clone();
    let others: Vec<_> = calls.into_iter().map(|call| call.stream).filter(|s| !Arc::ptr_eq(s, &main)).collect();
    others.iter().for_each(|other| main.follow(other.record()));
    main.push(move || plan.run());
    let done = main.record();
    others.iter().for_each(|other| other.follow(done.clone()));
    Ok(())
}
