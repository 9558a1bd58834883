//! Kernel launches, and the device's state after one failed.

use crate::alone::alone;
use crate::play::*;
use cuda::ops::Fill;
use cuda::tensor::View;
use fake_cuda::driver::*;
use std::ffi::{CStr, c_void};
use std::ptr::null_mut;

fn kernel(name: &CStr) -> Handle {
    let (mut module, mut function) = (null_mut(), null_mut());
    // SAFETY: there are places for the handles, and the image is one.
    unsafe {
        ok(cuModuleLoadData(&mut module, c"\x7fELF".as_ptr().cast()));
        ok(cuModuleGetFunction(&mut function, module, name.as_ptr()));
    }
    function
}

/// Copies floats by a kernel: `m` floats to `to`, from the `n` floats at `from`.
fn launch(function: Handle, (from, n): (u64, usize), (to, m): (u64, usize), shared: u32, on: Handle) -> i32 {
    // SAFETY: the tests wait before they free.
    let mut args = unsafe { Fill { from: View::new(from, n), to: View::new(to, m) } };
    let mut parameters = [(&raw mut args).cast::<c_void>()];
    // SAFETY: the kernel takes this struct.
    unsafe { cuLaunchKernel(function, 1, 1, 1, 256, 1, 1, shared, on, parameters.as_mut_ptr(), null_mut()) }
}

#[test]
fn a_kernel_runs_in_its_stream() {
    open(0);
    let (function, stream) = (kernel(c"copy_f32"), stream());
    let (from, to) = (device_memory(4000), device_memory(4000));
    let numbers: Vec<u8> = (0..1000).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let closed = gate(stream);
    write(from, &numbers, stream);
    ok(launch(function, (from, 1000), (to, 1000), 0, stream));
    closed.send(()).unwrap();
    let mut found = vec![0; 4000];
    read(&mut found, to, stream);
    assert!(found == numbers);
}

#[test]
fn shared_memory_must_be_allowed() {
    open(0);
    let (function, stream, at) = (kernel(c"copy_f32"), stream(), device_memory(16));
    let go = |shared| launch(function, (0, 0), (at, 4), shared, stream);
    assert_eq!(go(50 << 10), 1);
    // SAFETY: it is a handle.
    unsafe {
        assert_eq!(cuFuncSetAttribute(function, 8, 164 << 10), 1);
        ok(cuFuncSetAttribute(function, 8, 50 << 10));
    }
    ok(go(50 << 10));
    sync(stream);
}

#[test]
fn there_is_no_kernel_of_another_name() {
    open(0);
    let (mut module, mut function) = (null_mut(), null_mut());
    // SAFETY: there are places for the handles, and the texts end in zeros.
    unsafe {
        assert_eq!(cuModuleLoadData(&mut module, c"text".as_ptr().cast()), 200);
        ok(cuModuleLoadData(&mut module, c"\x7fELF".as_ptr().cast()));
        assert_eq!(cuModuleGetFunction(&mut function, module, c"copy_f64".as_ptr()), 500);
    }
}

/// The launch itself succeeds; everything after it fails.
#[test]
fn a_fault_on_demand_stays() {
    let body = || {
        open(0);
        let (function, stream, at) = (kernel(c"copy_f32"), stream(), device_memory(16));
        let go = || launch(function, (0, 0), (at, 4), 0, stream);
        ok(go());
        sync(stream);
        ok(go());
        // SAFETY: it is a handle, and there is a place for the address.
        unsafe {
            assert_eq!(cuStreamSynchronize(stream), 719);
            assert_eq!(cuMemAlloc_v2(&mut 0, 4), 719);
            assert_eq!(cuMemFree_v2(at), 719);
        }
        assert_eq!(go(), 719);
    };
    alone(&[("FAKE_CUDA_FAULT", "719@2")], body).well();
}

/// An error that the emulator finds is reported, and the device stays failed. Waits for a stream return.
#[test]
fn a_kernel_that_goes_too_far_is_found() {
    let body = || {
        open(0);
        let (function, streams, at) = (kernel(c"copy_f32"), [stream(), stream()], device_memory(16));
        let never = gate(streams[1]);
        ok(launch(function, (at, 3), (at, 4), 0, streams[0]));
        // SAFETY: they are handles.
        unsafe {
            assert_eq!(cuStreamSynchronize(streams[1]), 700);
            assert_eq!(cuStreamSynchronize(streams[0]), 700);
        }
        drop(never);
    };
    alone(&[], body).says("copy_f32").says("out of bounds");
}

#[test]
fn errors_have_names_and_words() {
    let text = |of: unsafe extern "C" fn(i32, *mut *const i8) -> i32, code| {
        let mut text = std::ptr::null();
        // SAFETY: there is a place for the pointer; texts live as long as the process.
        unsafe {
            ok(of(code, &mut text));
            CStr::from_ptr(text).to_str().unwrap()
        }
    };
    assert_eq!(text(cuGetErrorName, 719), "CUDA_ERROR_LAUNCH_FAILED");
    assert_eq!(text(cuGetErrorString, 719), "unspecified launch failure");
    // SAFETY: as above.
    assert_eq!(unsafe { cuGetErrorString(12345, &mut std::ptr::null()) }, 1);
}
