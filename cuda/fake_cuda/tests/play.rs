//! Short forms of the driver's functions for tests.

use fake_cuda::driver::*;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::mpsc::{Sender, channel};

pub type Handle = *mut c_void;

#[track_caller]
pub fn ok(code: i32) {
    assert_eq!(code, 0, "the driver's answer");
}

/// Makes a device current on this thread.
#[track_caller]
pub fn open(device: i32) {
    let mut context = null_mut();
    // SAFETY: there is a place for the handle.
    unsafe {
        ok(cuInit(0));
        ok(cuDevicePrimaryCtxRetain(&mut context, device));
        ok(cuCtxSetCurrent(context));
    }
}

pub fn stream() -> Handle {
    let mut stream = null_mut();
    // SAFETY: there is a place for the handle.
    ok(unsafe { cuStreamCreate(&mut stream, 1) });
    stream
}

pub fn event() -> Handle {
    let mut event = null_mut();
    // SAFETY: there is a place for the handle.
    ok(unsafe { cuEventCreate(&mut event, 0) });
    event
}

pub fn record(event: Handle, on: Handle) {
    // SAFETY: both are handles.
    ok(unsafe { cuEventRecord(event, on) });
}

pub fn wait(on: Handle, event: Handle) {
    // SAFETY: both are handles.
    ok(unsafe { cuStreamWaitEvent(on, event, 0) });
}

#[track_caller]
pub fn sync(stream: Handle) {
    // SAFETY: it is a handle.
    ok(unsafe { cuStreamSynchronize(stream) });
}

/// Blocks a stream until something is sent.
pub fn gate(stream: Handle) -> Sender<()> {
    let (open, opened) = channel::<()>();
    enqueue(stream, Box::new(move || _ = opened.recv()));
    open
}

pub fn device_memory(len: usize) -> u64 {
    let mut at = 0;
    // SAFETY: there is a place for the address.
    ok(unsafe { cuMemAlloc_v2(&mut at, len) });
    at
}

/// Pinned memory of the host, which lives as long as the process.
pub fn pinned(len: usize) -> &'static mut [u8] {
    let mut at = null_mut();
    // SAFETY: there is a place for the address, and nobody else has the block.
    unsafe {
        ok(cuMemHostAlloc(&mut at, len, 0));
        std::slice::from_raw_parts_mut(at.cast(), len)
    }
}

#[track_caller]
pub fn write(to: u64, from: &[u8], on: Handle) {
    // SAFETY: the bytes live until the copy is done: the tests wait for it.
    ok(unsafe { cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), on) });
}

#[track_caller]
pub fn read(to: &mut [u8], from: u64, on: Handle) {
    // SAFETY: the bytes live until the copy is done: the tests wait for it.
    ok(unsafe { cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), on) });
}
