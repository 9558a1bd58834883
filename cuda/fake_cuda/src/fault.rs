//! The error that a device does not recover from: every later call answers it, and nothing runs any more.

use crate::code::{Code, Said};
use std::sync::atomic::{AtomicI32, Ordering};

static FAULT: AtomicI32 = AtomicI32::new(0);

/// The first one stays.
pub fn set(code: Code) {
    _ = FAULT.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
}

/// Whether the device still works.
pub fn check() -> Said<()> {
    match FAULT.load(Ordering::Acquire) {
        0 => Ok(()),
        code => Err(code),
    }
}
