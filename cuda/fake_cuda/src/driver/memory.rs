//! Allocation and release of memory.

use super::device::current;
use super::streams::wait_for_all;
use crate::code::{Code, INVALID_VALUE, status_of};
use crate::memory::{self, Kind};
use crate::settings::settings;
use std::ffi::{c_uint, c_void};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    status_of(current().map(|device| {
        // SAFETY: the caller passes valid pointers.
        unsafe {
            *free = memory::free_bytes(device);
            *total = settings().memory;
        }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, len: usize) -> Code {
    let allocated = current().and_then(|device| memory::allocate(len, Kind::Device(device)));
    // SAFETY: the caller passes a valid pointer.
    status_of(allocated.map(|at| unsafe { *to = at }))
}

/// Synchronizes, like the real function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(at: u64) -> Code {
    status_of(if at == 0 { Ok(()) } else { wait_for_all().map(|()| memory::free(at, false)) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, len: usize, _: c_uint) -> Code {
    let allocated = current().and_then(|_| memory::allocate(len, Kind::Pinned));
    // SAFETY: the caller passes a valid pointer.
    status_of(allocated.map(|at| unsafe { *to = at as *mut c_void }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> Code {
    status_of(wait_for_all().map(|()| memory::free(at as u64, true)))
}

/// Pinned memory has the same address on host and device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(to: *mut u64, at: *mut c_void, _: c_uint) -> Code {
    let pinned = memory::kind(at as u64, 1) == Some(Kind::Pinned);
    let device = current().and_then(|_| pinned.then_some(at as u64).ok_or(INVALID_VALUE));
    // SAFETY: the caller passes a valid pointer.
    status_of(device.map(|at| unsafe { *to = at }))
}
