//! Memory, devices, and which thread may use them.

use crate::alone::alone;
use crate::play::*;
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};
use fake_cuda::driver::*;
use std::ptr::{null, null_mut};

fn free_bytes() -> (usize, usize) {
    let (mut free, mut total) = (0, 0);
    // SAFETY: there are places for the numbers.
    ok(unsafe { cuMemGetInfo_v2(&mut free, &mut total) });
    (free, total)
}

#[test]
fn a_device_has_so_much_and_no_more() {
    let body = || {
        open(0);
        let at = device_memory(700);
        assert_eq!(free_bytes(), (300, 1000));
        let mut more = 0;
        // SAFETY: there is a place for the address, and the block is freed once.
        unsafe {
            assert_eq!(cuMemAlloc_v2(&mut more, 301), 2);
            ok(cuMemFree_v2(at));
        }
        assert_eq!(free_bytes(), (1000, 1000));
    };
    alone(&[("FAKE_CUDA_MEMORY", "1000")], body).well();
}

#[test]
fn what_is_freed_twice_ends_the_process() {
    let body = || {
        open(0);
        let at = device_memory(16);
        // SAFETY: the second call is invalid, which is what is tested: it frees nothing.
        unsafe {
            ok(cuMemFree_v2(at));
            cuMemFree_v2(at);
        }
    };
    let ended = alone(&[], body).says("where no block begins");
    assert!(!ended.status.success());
}

#[test]
fn a_thread_without_a_context_can_do_nothing() {
    open(0);
    std::thread::spawn(|| {
        let mut at = 0;
        // SAFETY: there are places for what the calls return.
        unsafe {
            assert_eq!(cuMemAlloc_v2(&mut at, 16), 201);
            assert_eq!(cuStreamSynchronize(null_mut()), 201);
        }
        open(0);
        device_memory(16);
    })
    .join()
    .unwrap();
}

#[test]
fn copies_stay_inside_of_blocks() {
    open(0);
    let (at, stream, bytes) = (device_memory(16), stream(), [0u8; 17]);
    // SAFETY: the bytes live; the driver refuses what goes beyond its block.
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(at, bytes.as_ptr().cast(), 17, stream), 1);
        assert_eq!(cuMemcpyDtoDAsync_v2(at + 1, at, 16, stream), 1);
        assert_eq!(cuMemsetD8Async(at + 16, 0, 1, stream), 1);
        ok(cuMemcpyHtoDAsync_v2(at, bytes.as_ptr().cast(), 16, stream));
    }
}

/// Copies the middle of a matrix of 4 x 4 bytes into one with rows of 3.
#[test]
fn a_part_of_a_matrix_is_copied() {
    open(0);
    let (from, to, stream) = (device_memory(16), device_memory(9), stream());
    let numbers: Vec<u8> = (0..16).collect();
    write(from, &numbers, stream);
    // SAFETY: the fills and copies stay inside of the blocks.
    unsafe {
        ok(cuMemsetD8Async(to, 0, 9, stream));
        let copy = CUDA_MEMCPY2D {
            srcXInBytes: 1,
            srcY: 1,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null(),
            srcDevice: from,
            srcArray: null_mut(),
            srcPitch: 4,
            dstXInBytes: 1,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: null_mut(),
            dstDevice: to,
            dstArray: null_mut(),
            dstPitch: 3,
            WidthInBytes: 2,
            Height: 2,
        };
        ok(cuMemcpy2DAsync_v2(&copy, stream));
        let beyond = CUDA_MEMCPY2D { Height: 4, ..copy };
        assert_eq!(cuMemcpy2DAsync_v2(&beyond, stream), 1);
    }
    let mut found = [0; 9];
    read(&mut found, to, stream);
    assert_eq!(found, [0, 5, 6, 0, 9, 10, 0, 0, 0]);
}

#[test]
fn devices_differ() {
    let body = || {
        open(0);
        open(1);
        let mut uuids = [[0; 16]; 2];
        // SAFETY: there are places for what the calls return.
        unsafe {
            ok(cuDeviceGetUuid_v2(&mut uuids[0], 0));
            ok(cuDeviceGetUuid_v2(&mut uuids[1], 1));
            assert_eq!(cuDeviceGet(&mut 0, 2), 101);
        }
        assert_ne!(uuids[0], uuids[1]);
    };
    alone(&[("FAKE_CUDA_DEVICES", "3"), ("CUDA_VISIBLE_DEVICES", "2,0")], body).well();
}
