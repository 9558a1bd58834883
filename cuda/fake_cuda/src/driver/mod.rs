//! The CUDA driver's functions, by the names and types of `cuda.h`.

mod copies;
mod device;
mod events;
mod kernels;
mod memory;
mod streams;

pub use copies::*;
pub use device::*;
pub(crate) use device::{current, uuid};
pub use events::*;
pub use kernels::*;
pub use memory::*;
pub(crate) use streams::stream;
pub use streams::*;

use crate::code::{Code, INVALID_VALUE, answer, words};
use std::ffi::c_char;

/// What a call answers that asks for a text.
unsafe fn tell(code: Code, to: *mut *const c_char, which: impl Fn(Code) -> Option<*const c_char>) -> Code {
    let text = which(code);
    // SAFETY: the caller gives a place for the pointer, which is null for an error that is unknown.
    unsafe { *to = text.unwrap_or(std::ptr::null()) };
    answer(text.map(|_| ()).ok_or(INVALID_VALUE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, to: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer is handed on.
    unsafe { tell(code, to, |code| words(code).map(|(name, _)| name.as_ptr())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, to: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer is handed on.
    unsafe { tell(code, to, |code| words(code).map(|(_, words)| words.as_ptr())) }
}
