//! Memory that is taken and given back.

use super::device::current;
use super::streams::wait_for_all;
use crate::code::{Code, INVALID_VALUE, answer};
use crate::memory::{self, Kind};
use crate::settings::settings;
use std::ffi::{c_uint, c_void};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    answer(current().map(|device| {
        // SAFETY: the caller gives places for two numbers.
        unsafe {
            *free = memory::free_bytes(device);
            *total = settings().memory;
        }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, len: usize) -> Code {
    let taken = current().and_then(|device| memory::take(len, Kind::Device(device)));
    // SAFETY: the caller gives a place for an address.
    answer(taken.map(|at| unsafe { *to = at }))
}

/// Waits for everything under way, as the real one does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(at: u64) -> Code {
    answer(if at == 0 { Ok(()) } else { wait_for_all().map(|()| memory::give(at, false)) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, len: usize, _: c_uint) -> Code {
    let taken = current().and_then(|_| memory::take(len, Kind::Pinned));
    // SAFETY: the caller gives a place for an address.
    answer(taken.map(|at| unsafe { *to = at as *mut c_void }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> Code {
    answer(wait_for_all().map(|()| memory::give(at as u64, true)))
}

/// A device sees pinned memory where the host does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(to: *mut u64, at: *mut c_void, _: c_uint) -> Code {
    let pinned = memory::kind(at as u64, 1) == Some(Kind::Pinned);
    let device = current().and_then(|_| pinned.then_some(at as u64).ok_or(INVALID_VALUE));
    // SAFETY: the caller gives a place for an address.
    answer(device.map(|at| unsafe { *to = at }))
}
