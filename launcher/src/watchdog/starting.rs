//! The start of MPI, in which ranks meet that have no memory in common yet: one that died before the others met it
//! leaves them waiting.

use super::{INTERVAL, patience};
use crate::output::to_stderr;
use engine::mpi::{end_process, host};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// Ends this process if MPI has not started, which is when this is dropped, in the time of [`patience::at_start`].
pub struct Starting(Arc<AtomicBool>);

impl Starting {
    pub fn begin() -> Starting {
        let (started, limit) = (Arc::<AtomicBool>::default(), patience::at_start());
        let (ended, begun) = (started.clone(), Instant::now());
        let watch = move || {
            while !ended.load(Relaxed) {
                std::thread::sleep(INTERVAL);
                if begun.elapsed() >= limit && !ended.load(Relaxed) {
                    to_stderr(&format!(
                        "no progress for {} s: MPI does not start on {}: another rank has died or was never started, \
                         or the hosts do not reach each other",
                        limit.as_secs(),
                        host()
                    ));
                    end_process(1);
                }
            }
        };
        // Without the thread MPI starts all the same.
        let _ = std::thread::Builder::new().name("start".into()).spawn(watch);
        Starting(started)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
