//! The CUDA driver's functions, with the names and types of `cuda.h`.

mod copies;
mod device;
mod events;
mod kernels;
mod memory;
mod streams;
mod tensor_map;

pub use copies::*;
pub use device::*;
pub(crate) use device::{current, uuid};
pub use events::*;
pub use kernels::*;
pub use memory::*;
pub(crate) use streams::stream;
pub use streams::*;
pub use tensor_map::*;

use crate::code::{Code, INVALID_VALUE, description, status_of};
use std::ffi::c_char;

/// Returns a text about an error.
unsafe fn text_of(code: Code, to: *mut *const c_char, which: impl Fn(Code) -> Option<*const c_char>) -> Code {
    let text = which(code);
    // SAFETY: the caller passes a valid pointer; the text is null for an unknown error.
    unsafe { *to = text.unwrap_or(std::ptr::null()) };
    status_of(text.map(|_| ()).ok_or(INVALID_VALUE))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, to: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer is passed on.
    unsafe { text_of(code, to, |code| description(code).map(|(name, _)| name.as_ptr())) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, to: *mut *const c_char) -> Code {
    // SAFETY: the caller's pointer is passed on.
    unsafe { text_of(code, to, |code| description(code).map(|(_, description)| description.as_ptr())) }
}
