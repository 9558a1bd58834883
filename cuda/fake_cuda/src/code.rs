//! What the driver's calls answer: 0, or the number of an error.

use cudarc::driver::sys::CUresult;
use std::ffi::{CString, c_int};
use std::sync::LazyLock;

/// An error's number, as in `CUresult`.
pub type Code = c_int;

/// What a call comes to.
pub type Said<T> = Result<T, Code>;

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

/// What a call of C answers.
pub fn answer(what: Said<()>) -> Code {
    what.err().unwrap_or(0)
}

/// Ends the process: what the program did here would have no defined end on a device.
pub fn die(what: &str) -> ! {
    eprintln!("stand-in: {what}");
    std::process::abort()
}

/// Errors that the stand-in knows, in the driver's words.
const WORDS: &[(CUresult, &str)] = &[
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

/// Name and words of an error, None where it is unknown.
pub fn words(code: Code) -> Option<&'static (CString, CString)> {
    static TEXTS: LazyLock<Vec<(Code, (CString, CString))>> = LazyLock::new(|| {
        let text = |text: &str| CString::new(text).expect("no zero in a word");
        WORDS.iter().map(|(code, words)| (*code as Code, (text(&format!("{code:?}")), text(words)))).collect()
    });
    TEXTS.iter().find(|(known, _)| *known == code).map(|(_, texts)| texts)
}
