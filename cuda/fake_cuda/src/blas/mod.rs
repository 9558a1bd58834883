//! cuBLASLt: bf16 times bf16 with f32 sums, in stream order. It rejects the calls that the real library rejects,
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

/// A `cublasStatus_t` as a number.
pub type Status = u32;

const SUCCESS: Status = S::CUBLAS_STATUS_SUCCESS as Status;
const NOT_INITIALIZED: Status = S::CUBLAS_STATUS_NOT_INITIALIZED as Status;
const INVALID_VALUE: Status = S::CUBLAS_STATUS_INVALID_VALUE as Status;
const EXECUTION_FAILED: Status = S::CUBLAS_STATUS_EXECUTION_FAILED as Status;
const NOT_SUPPORTED: Status = S::CUBLAS_STATUS_NOT_SUPPORTED as Status;

/// The result of a call.
type Outcome<T> = Result<T, Status>;

/// A version that never existed, so that its choices are never mistaken for those of a real library.
const VERSION: usize = 129_900;
const CUDART: usize = 12_090;

static OPEN: Handles<()> = Handles::from(0x5000_0000);

fn status_of(what: Outcome<()>) -> Status {
    what.err().unwrap_or(SUCCESS)
}

/// Rejects a call, with the reason.
fn reject<T>(status: Status, why: &str) -> Outcome<T> {
    eprintln!("fake CUDA: cuBLASLt rejects {why}");
    Err(status)
}

fn check_handle(handle: *mut c_void) -> Outcome<()> {
    OPEN.get(handle).map(|_| ()).or_else(|_| reject(NOT_INITIALIZED, "an unknown handle"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(to: *mut *mut c_void) -> Status {
    if current().is_err() {
        return NOT_INITIALIZED;
    }
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = OPEN.add(Arc::new(())) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(handle: *mut c_void) -> Status {
    status_of(OPEN.remove(handle).map(|_| ()).or_else(|_| reject(NOT_INITIALIZED, "an unknown handle to destroy")))
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
