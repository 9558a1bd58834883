//! The driver's status codes.

use cudarc::driver::sys::CUresult;
use std::ffi::{CString, c_int};
use std::sync::LazyLock;

/// A `CUresult` as a number; 0 is success.
pub type Code = c_int;

/// The result of a call.
pub type Outcome<T> = Result<T, Code>;

pub const INVALID_VALUE: Code = CUresult::CUDA_ERROR_INVALID_VALUE as Code;
pub const OUT_OF_MEMORY: Code = CUresult::CUDA_ERROR_OUT_OF_MEMORY as Code;
pub const NOT_INITIALIZED: Code = CUresult::CUDA_ERROR_NOT_INITIALIZED as Code;
pub const NO_DEVICE: Code = CUresult::CUDA_ERROR_NO_DEVICE as Code;
pub const INVALID_DEVICE: Code = CUresult::CUDA_ERROR_INVALID_DEVICE as Code;
pub const INVALID_IMAGE: Code = CUresult::CUDA_ERROR_INVALID_IMAGE as Code;
pub const INVALID_CONTEXT: Code = CUresult::CUDA_ERROR_INVALID_CONTEXT as Code;
pub const NO_BINARY: Code = CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as Code;
pub const INVALID_HANDLE: Code = CUresult::CUDA_ERROR_INVALID_HANDLE as Code;
pub const NOT_FOUND: Code = CUresult::CUDA_ERROR_NOT_FOUND as Code;
pub const NOT_READY: Code = CUresult::CUDA_ERROR_NOT_READY as Code;
pub const ILLEGAL_ADDRESS: Code = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS as Code;
pub const NOT_SUPPORTED: Code = CUresult::CUDA_ERROR_NOT_SUPPORTED as Code;

/// The status that a C function returns.
pub fn status_of(what: Outcome<()>) -> Code {
    what.err().unwrap_or(0)
}

/// Ends the process, because what the program did is undefined behaviour on a device.
pub fn abort(what: &str) -> ! {
    eprintln!("fake CUDA: {what}");
    std::process::abort()
}

/// The known errors, with the driver's descriptions.
const DESCRIPTIONS: &[(CUresult, &str)] = &[
    (CUresult::CUDA_SUCCESS, "no error"),
    (CUresult::CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    (CUresult::CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    (CUresult::CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    (CUresult::CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    (CUresult::CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    (CUresult::CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    (CUresult::CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    (CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    (CUresult::CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"),
    (CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE, "uncorrectable NVLink error detected during the execution"),
    (CUresult::CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    (CUresult::CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    (CUresult::CUDA_ERROR_NOT_READY, "device not ready"),
    (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    (CUresult::CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"),
    (CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION, "an illegal instruction was encountered"),
    (CUresult::CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    (CUresult::CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    (CUresult::CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    (CUresult::CUDA_ERROR_SYSTEM_NOT_READY, "system not yet initialized"),
    (CUresult::CUDA_ERROR_UNKNOWN, "unknown error"),
];

/// The name and the description of an error; None if it is unknown.
pub fn description(code: Code) -> Option<&'static (CString, CString)> {
    static TEXTS: LazyLock<Vec<(Code, (CString, CString))>> = LazyLock::new(|| {
        let text = |text: &str| CString::new(text).expect("the text has no NUL");
        DESCRIPTIONS
            .iter()
            .map(|(code, description)| (*code as Code, (text(&format!("{code:?}")), text(description))))
            .collect()
    });
    TEXTS.iter().find(|(known, _)| *known == code).map(|(_, texts)| texts)
}
