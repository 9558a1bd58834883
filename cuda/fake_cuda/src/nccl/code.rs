//! NCCL's status codes, and its last error.

use std::ffi::{CStr, CString, c_int};
use std::sync::Mutex;

/// An `ncclResult_t` as a number.
pub type Code = c_int;
pub type Outcome<T> = Result<T, Code>;

pub const UNHANDLED_CUDA_ERROR: Code = 1;
pub const SYSTEM_ERROR: Code = 2;
pub const INTERNAL_ERROR: Code = 3;
pub const INVALID_ARGUMENT: Code = 4;
pub const INVALID_USAGE: Code = 5;
pub const REMOTE_ERROR: Code = 6;
pub const IN_PROGRESS: Code = 7;

static LAST: Mutex<&'static CStr> = Mutex::new(c"");

/// Prints an error and stores it as the last one.
pub fn fail(code: Code, what: &str) -> Code {
    eprintln!("fake CUDA: NCCL: {what}");
    let text = CString::new(what).unwrap_or_default();
    // There are few errors, and the program may keep the pointer.
    *LAST.lock().expect("no holder panics") = Box::leak(text.into_boxed_c_str());
    code
}

pub fn last() -> &'static CStr {
    *LAST.lock().expect("no holder panics")
}

pub fn description(code: Code) -> &'static CStr {
    match code {
        0 => c"no error",
        1 => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        2 => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        3 => c"internal error - please report this issue to the NCCL developers",
        4 => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        5 => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        6 => c"remote process exited or there was a network error",
        7 => c"NCCL operation in progress",
        _ => c"unknown result code",
    }
}

/// The status that a C function returns.
pub fn status_of(what: Outcome<()>) -> Code {
    what.err().unwrap_or(0)
}
