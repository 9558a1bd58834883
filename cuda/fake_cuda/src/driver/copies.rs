//! Copies and fills. Pageable host memory is read and written before the call returns, pinned memory when the stream
//! executes the copy.

use super::streams::stream;
use crate::code::{Code, INVALID_VALUE, Outcome, status_of};
use crate::memory::{self, known};
use crate::stream::Stream;
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};
use std::ffi::{c_uchar, c_uint, c_void};
use std::sync::Arc;

/// `rows` of `len` bytes, `pitch` bytes apart.
#[derive(Clone, Copy)]
struct Rows {
    at: u64,
    rows: usize,
    len: usize,
    pitch: usize,
}

impl Rows {
    fn one(at: u64, len: usize) -> Rows {
        Rows { at, rows: 1, len, pitch: len }
    }

    /// Bytes from the first to the last.
    fn span(&self) -> usize {
        self.pitch * (self.rows - 1) + self.len
    }

    fn known(&self) -> Outcome<()> {
        known(self.at, self.span())
    }

    /// Whether this is host memory that is not pinned.
    fn pageable(&self) -> bool {
        memory::kind(self.at, self.span()).is_none()
    }

    /// # Safety
    /// Both are live memory.
    unsafe fn copy(to: Rows, from: Rows) {
        for row in 0..to.rows {
            // SAFETY: both have this row.
            unsafe { memory::copy(to.at + (row * to.pitch) as u64, from.at + (row * from.pitch) as u64, to.len) };
        }
    }
}

/// Enqueues a copy. The callers have checked which side is device memory.
///
/// # Safety
/// Memory that the driver did not allocate is live.
unsafe fn copy(to: Rows, from: Rows, stream: &Stream) -> Outcome<()> {
    if to.len == 0 || to.rows == 0 {
        return Ok(());
    }
    if from.pageable() {
        let mut staged = vec![0u8; from.rows * from.len];
        let packed = move |at| Rows { at, pitch: from.len, ..from };
        // SAFETY: the caller's bytes are live now, and there is room for them.
        unsafe { Rows::copy(packed(staged.as_mut_ptr() as u64), from) };
        // SAFETY: the driver frees the destination only after its streams have completed.
        stream.push(move || unsafe { Rows::copy(to, packed(staged.as_ptr() as u64)) });
        return if to.pageable() { stream.wait() } else { Ok(()) };
    }
    // SAFETY: as above; pageable memory is live until this function returns, which is after the copy.
    stream.push(move || unsafe { Rows::copy(to, from) });
    if to.pageable() { stream.wait() } else { Ok(()) }
}

fn copied(to: Rows, from: Rows, device: &[Rows], on: *mut c_void) -> Outcome<Arc<Stream>> {
    let stream = stream(on)?;
    device.iter().filter(|rows| rows.len > 0).try_for_each(Rows::known)?;
    // SAFETY: the caller of the driver guarantees the host memory.
    unsafe { copy(to, from, &stream)? };
    Ok(stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, on: *mut c_void) -> Code {
    let (to, from) = (Rows::one(to, len), Rows::one(from as u64, len));
    status_of(copied(to, from, &[to], on).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, on: *mut c_void) -> Code {
    let (to, from) = (Rows::one(to as u64, len), Rows::one(from, len));
    status_of(copied(to, from, &[from], on).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, on: *mut c_void) -> Code {
    let (to, from) = (Rows::one(to, len), Rows::one(from, len));
    status_of(copied(to, from, &[to, from], on).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) -> Code {
    let (to, from) = (Rows::one(to, len), Rows::one(from as u64, len));
    status_of(copied(to, from, &[to], std::ptr::null_mut()).and_then(|stream| stream.wait()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) -> Code {
    let (to, from) = (Rows::one(to as u64, len), Rows::one(from, len));
    status_of(copied(to, from, &[from], std::ptr::null_mut()).and_then(|stream| stream.wait()))
}

/// Returns before the copy is done, like the real function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) -> Code {
    // SAFETY: the caller's addresses are passed on.
    unsafe { cuMemcpyDtoDAsync_v2(to, from, len, std::ptr::null_mut()) }
}

/// One side of a 2D copy, and whether it must be the driver's memory.
fn side(at: [u64; 2], kind: CUmemorytype, [x, y, pitch]: [usize; 3], copy: &CUDA_MEMCPY2D) -> Outcome<(Rows, bool)> {
    let (at, device) = match kind {
        CUmemorytype::CU_MEMORYTYPE_HOST => (at[0], false),
        CUmemorytype::CU_MEMORYTYPE_DEVICE | CUmemorytype::CU_MEMORYTYPE_UNIFIED => (at[1], true),
        _ => return Err(INVALID_VALUE),
    };
    if copy.Height > 1 && pitch < x + copy.WidthInBytes {
        return Err(INVALID_VALUE);
    }
    let rows = Rows { at: at + (y * pitch + x) as u64, rows: copy.Height, len: copy.WidthInBytes, pitch };
    Ok((rows, device))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, on: *mut c_void) -> Code {
    // SAFETY: the caller passes a valid pointer.
    let copy = unsafe { &*copy };
    let go = || {
        let from = [copy.srcHost as u64, copy.srcDevice];
        let (from, a) = side(from, copy.srcMemoryType, [copy.srcXInBytes, copy.srcY, copy.srcPitch], copy)?;
        let to = [copy.dstHost as u64, copy.dstDevice];
        let (to, b) = side(to, copy.dstMemoryType, [copy.dstXInBytes, copy.dstY, copy.dstPitch], copy)?;
        if copy.Height == 0 || copy.WidthInBytes == 0 {
            return Ok(());
        }
        let device: Vec<Rows> = [(from, a), (to, b)].iter().filter(|(_, d)| *d).map(|(rows, _)| *rows).collect();
        copied(to, from, &device, on).map(|_| ())
    };
    status_of(go())
}

/// Sets `n` values from `at` on.
fn fill<T: Copy + Send + 'static>(at: u64, value: T, n: usize, on: *mut c_void) -> Outcome<()> {
    let stream = stream(on)?;
    if n == 0 {
        return Ok(());
    }
    known(at, n * size_of::<T>())?;
    if !at.is_multiple_of(align_of::<T>() as u64) {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the driver frees these bytes only after its streams have completed.
    stream.push(move || unsafe { std::slice::from_raw_parts_mut(at as *mut T, n) }.fill(value));
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(at: u64, value: c_uchar, n: usize, on: *mut c_void) -> Code {
    status_of(fill(at, value, n, on))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(at: u64, value: c_uint, n: usize, on: *mut c_void) -> Code {
    status_of(fill(at, value, n, on))
}
