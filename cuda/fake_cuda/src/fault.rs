//! A sticky error: every later call returns it, and nothing runs any more.

use crate::code::{Code, Outcome};
use std::sync::atomic::{AtomicI32, Ordering};

static FAULT: AtomicI32 = AtomicI32::new(0);

/// Only the first error is kept.
pub fn set(code: Code) {
    _ = FAULT.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
}

/// The sticky error, if there is one.
pub fn check() -> Outcome<()> {
    match FAULT.load(Ordering::Acquire) {
        0 => Ok(()),
        code => Err(code),
    }
}
