//! cuBLASLt: bf16 times bf16 with sums in f32, in the order of a stream. What the real one refuses is refused here,
//! with the reason on standard error.

mod algorithms;
mod descriptors;
mod matmul;

pub use algorithms::*;
pub use descriptors::*;
pub use matmul::*;

use crate::driver::current;
use crate::handles::Handles;
use cudarc::cublaslt::sys::cublasStatus_t as S;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

/// What calls answer, as in `cublasStatus_t`.
pub type Status = u32;

const SUCCESS: Status = S::CUBLAS_STATUS_SUCCESS as Status;
const NOT_INITIALIZED: Status = S::CUBLAS_STATUS_NOT_INITIALIZED as Status;
const INVALID_VALUE: Status = S::CUBLAS_STATUS_INVALID_VALUE as Status;
const EXECUTION_FAILED: Status = S::CUBLAS_STATUS_EXECUTION_FAILED as Status;
const NOT_SUPPORTED: Status = S::CUBLAS_STATUS_NOT_SUPPORTED as Status;

/// What a call comes to.
type Said<T> = Result<T, Status>;

/// One that there never was: what it chose must never be taken for the choice of a real one.
const VERSION: usize = 129_900;
const CUDART: usize = 12_090;

static OPEN: Handles<()> = Handles::from(0x5000_0000);

fn answer(what: Said<()>) -> Status {
    what.err().unwrap_or(SUCCESS)
}

/// A refusal with its reason.
fn no<T>(status: Status, why: &str) -> Said<T> {
    eprintln!("stand-in: cuBLASLt refuses: {why}");
    Err(status)
}

fn open(handle: *mut c_void) -> Said<()> {
    OPEN.get(handle).map(|_| ()).or_else(|_| no(NOT_INITIALIZED, "no such handle"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(to: *mut *mut c_void) -> Status {
    if current().is_err() {
        return NOT_INITIALIZED;
    }
    // SAFETY: the caller gives a place for a handle.
    unsafe { *to = OPEN.add(Arc::new(())) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(handle: *mut c_void) -> Status {
    answer(OPEN.remove(handle).map(|_| ()).or_else(|_| no(NOT_INITIALIZED, "no such handle to destroy")))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    CUDART
}

fn texts(status: Status) -> [&'static CStr; 2] {
    match status {
        SUCCESS => [c"CUBLAS_STATUS_SUCCESS", c"success"],
        NOT_INITIALIZED => [c"CUBLAS_STATUS_NOT_INITIALIZED", c"the library was not initialized"],
        INVALID_VALUE => {
            [c"CUBLAS_STATUS_INVALID_VALUE", c"an unsupported value or parameter was passed to the function"]
        }
        EXECUTION_FAILED => [c"CUBLAS_STATUS_EXECUTION_FAILED", c"the function failed to launch on the GPU"],
        NOT_SUPPORTED => [c"CUBLAS_STATUS_NOT_SUPPORTED", c"the requested functionality is not supported"],
        _ => [c"CUBLAS_STATUS_UNKNOWN", c"unknown"],
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusName(status: Status) -> *const c_char {
    texts(status)[0].as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusString(status: Status) -> *const c_char {
    texts(status)[1].as_ptr()
}
