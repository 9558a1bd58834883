//! Modules, functions and launches. Kernels run in the emulator, whatever the image contains.

use super::device::{current, most_shared};
use super::streams::stream;
use crate::code::*;
use crate::fault;
use crate::handles::Handles;
use crate::nvrtc::target_of;
use crate::settings::settings;
use cuda::machine::{Geometry, Machine};
use cudarc::driver::sys::CUfunction_attribute as Attribute;
use emulator::{Emulator, Schedule, args_size};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Bytes of shared memory that a block can use without opting in to more.
const ALLOWED: c_int = 48 << 10;

struct Function {
    name: &'static str,
    /// Bytes of its arguments.
    args: usize,
    /// Bytes of dynamic shared memory that a launch can use.
    shared: AtomicI32,
}

static MODULES: Handles<()> = Handles::from(0x3000_0000);
static FUNCTIONS: Handles<Function> = Handles::from(0x4000_0000);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(to: *mut *mut c_void, image: *const c_void) -> Code {
    let load = |_| {
        // SAFETY: the caller passes an image, and no more than its bytes is read.
        let target = unsafe { target_of(image.cast()) }.ok_or(INVALID_IMAGE)?;
        // A cubin of one generation does not load on another.
        if target.is_some_and(|target| target / 10 != settings().capability / 10) {
            return Err(NO_BINARY);
        }
        // SAFETY: the caller passes a valid pointer.
        unsafe { *to = MODULES.add(Arc::new(())) };
        Ok(())
    };
    status_of(current().and_then(load))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: *mut c_void) -> Code {
    status_of(MODULES.remove(module).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(to: *mut *mut c_void, module: *mut c_void, name: *const c_char) -> Code {
    let find = |_| {
        MODULES.get(module)?;
        // SAFETY: the caller passes a text that ends in NUL.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?;
        let args = args_size(name).ok_or(NOT_FOUND)?;
        // The emulator needs static names. A process looks up each kernel only a few times.
        let name = Box::leak(name.to_string().into_boxed_str());
        let function = Function { name, args, shared: AtomicI32::new(ALLOWED) };
        // SAFETY: the caller passes a valid pointer.
        unsafe { *to = FUNCTIONS.add(Arc::new(function)) };
        Ok(())
    };
    status_of(current().and_then(find))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(to: *mut c_int, which: c_int, function: *mut c_void) -> Code {
    let known = |function: Arc<Function>| match which {
        w if w == Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as c_int => Ok(1024),
        w if w == Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as c_int => Ok(0),
        w if w == Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES as c_int => Ok(0),
        w if w == Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS as c_int => Ok(32),
        w if w == Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as c_int => {
            Ok(function.shared.load(Ordering::Relaxed))
        }
        _ => Err(INVALID_VALUE),
    };
    // SAFETY: the caller passes a valid pointer.
    status_of(FUNCTIONS.get(function).and_then(known).map(|value| unsafe { *to = value }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: *mut c_void, which: c_int, value: c_int) -> Code {
    let set = |function: Arc<Function>| {
        let shared = which == Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as c_int;
        if !shared || !(0..=most_shared()).contains(&value) {
            return Err(INVALID_VALUE);
        }
        function.shared.store(value, Ordering::Relaxed);
        Ok(())
    };
    status_of(FUNCTIONS.get(function).and_then(set))
}

/// 128 bytes of a kernel's arguments, aligned as tensor maps require.
#[repr(align(128))]
#[derive(Clone)]
struct Line {
    _bytes: [u8; 128],
}

/// Rejects launch configurations that no device supports.
fn check(function: &Function, grid: [u32; 3], block: [u32; 3], shared: u32) -> Outcome<()> {
    let fits = |n: u32, most: u32| (1..=most).contains(&n);
    let blocks = fits(grid[0], i32::MAX as u32) && fits(grid[1], 65535) && fits(grid[2], 65535);
    let sound = blocks && fits(block[0], 1024) && block[1..] == [1, 1];
    (sound && shared as c_int <= function.shared.load(Ordering::Relaxed)).then_some(()).ok_or(INVALID_VALUE)
}

/// Supports kernels that take one struct, with one-dimensional blocks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    on: *mut c_void,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Code {
    let launch = || {
        let (stream, function) = (stream(on)?, FUNCTIONS.get(function)?);
        check(&function, [gx, gy, gz], [bx, by, bz], shared)?;
        if parameters.is_null() || !extra.is_null() {
            return Err(INVALID_VALUE);
        }
        let mut args = vec![Line { _bytes: [0; 128] }; function.args.div_ceil(size_of::<Line>())];
        // SAFETY: the only parameter is a struct of the size that the kernel declares.
        unsafe { (*parameters).cast::<u8>().copy_to_nonoverlapping(args.as_mut_ptr().cast(), function.args) };
        let geometry = Geometry { grid: [gx, gy, gz], block: bx, shared };
        stream.push(move || run(&function, args, geometry));
        Ok(())
    };
    status_of(launch())
}

/// Runs a kernel to completion; an error becomes the device's sticky error.
fn run(function: &Function, args: Vec<Line>, geometry: Geometry) {
    static LAUNCHES: AtomicUsize = AtomicUsize::new(0);
    let number = LAUNCHES.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some((code, n)) = settings().fault
        && n == number
    {
        return fault::set(code);
    }
    let args = args.as_ptr().cast();
    // SAFETY: the struct is the kernel's; the caller of the launch guarantees the views.
    if let Err(what) = unsafe { Emulator::new(Schedule::Forward).start(function.name, args, geometry) } {
        eprintln!("fake CUDA: {what}");
        fault::set(ILLEGAL_ADDRESS);
    }
}
