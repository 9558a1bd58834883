//! NVRTC: it accepts any source for any known architecture. Its image contains only the architecture.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt::Write;

/// NVRTC_ERROR_INVALID_INPUT, NVRTC_ERROR_INVALID_PROGRAM and NVRTC_ERROR_INVALID_OPTION.
const INVALID_INPUT: c_int = 3;
const INVALID_PROGRAM: c_int = 4;
const INVALID_OPTION: c_int = 5;

/// A version that never existed, so that its images are never mistaken for those of a real compiler.
const VERSION: [c_int; 2] = [12, 99];
const ARCHS: [c_int; 7] = [80, 86, 87, 89, 90, 100, 120];

/// The first bytes of every image, and of those made here.
const ELF: &[u8] = b"\x7fELF";
const OURS: &[u8] = b"\x7fELF of fake CUDA for sm_";

struct Program {
    text: String,
    log: CString,
    image: Vec<u8>,
}

/// The compute capability that an image was made for: Some(None) for an image from elsewhere, None if it is no image.
///
/// # Safety
/// The pointer is to at least four bytes. If they are an ELF magic number, the bytes up to a NUL may be read.
pub(crate) unsafe fn target_of(image: *const u8) -> Option<Option<i32>> {
    let begins = |with: &[u8]| {
        // SAFETY: reading stops at the first difference, which is at a NUL at the latest.
        with.iter().enumerate().all(|(i, byte)| unsafe { *image.add(i) } == *byte)
    };
    if !begins(ELF) {
        return None;
    }
    if !begins(OURS) {
        return Some(None);
    }
    // SAFETY: our images end in NUL.
    let rest = unsafe { CStr::from_ptr(image.add(OURS.len()).cast()) }.to_bytes();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
    Some(Some(digits.fold(0, |n, digit| n * 10 + i32::from(digit - b'0'))))
}

/// The report of ptxas for each kernel.
fn log(text: &str, arch: &str) -> String {
    let mut log = String::new();
    for kernel in text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next()) {
        _ = write!(
            log,
            "ptxas info    : Compiling entry function '{kernel}' for '{arch}'\n\
             ptxas info    : Function properties for {kernel}\n\
             ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 32 registers, used 1 barriers, 392 bytes cmem[0]\n"
        );
    }
    log
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    // SAFETY: the caller passes valid pointers.
    unsafe { [*major, *minor] = VERSION };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetNumSupportedArchs(to: *mut c_int) -> c_int {
    // SAFETY: the caller passes a valid pointer.
    unsafe { *to = ARCHS.len() as c_int };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetSupportedArchs(to: *mut c_int) -> c_int {
    // SAFETY: the caller provides room for the number of architectures.
    unsafe { to.copy_from_nonoverlapping(ARCHS.as_ptr(), ARCHS.len()) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCreateProgram(
    to: *mut *mut c_void,
    text: *const c_char,
    _name: *const c_char,
    _headers: c_int,
    _texts: *const *const c_char,
    _names: *const *const c_char,
) -> c_int {
    if text.is_null() {
        return INVALID_INPUT;
    }
    // SAFETY: the caller passes a text that ends in NUL and a valid pointer.
    unsafe {
        let text = CStr::from_ptr(text).to_string_lossy().into_owned();
        let program = Program { text, log: CString::default(), image: Vec::new() };
        *to = Box::into_raw(Box::new(program)).cast();
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcCompileProgram(program: *mut c_void, n: c_int, options: *const *const c_char) -> c_int {
    // SAFETY: the program is from `nvrtcCreateProgram`, and there are n options that end in NUL.
    let (program, options) = unsafe {
        let Some(program) = program.cast::<Program>().as_mut() else { return INVALID_PROGRAM };
        let options = (0..n as usize).map(|i| CStr::from_ptr(*options.add(i)).to_string_lossy().into_owned());
        (program, options.collect::<Vec<String>>())
    };
    let Some(arch) = options.iter().find_map(|option| option.strip_prefix("--gpu-architecture=sm_")) else {
        return INVALID_OPTION;
    };
    program.image = [OURS, arch.as_bytes(), b"\0"].concat();
    program.log = CString::new(log(&program.text, &format!("sm_{arch}"))).expect("the log has no NUL");
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcDestroyProgram(program: *mut *mut c_void) -> c_int {
    // SAFETY: the program is from `nvrtcCreateProgram` and is destroyed once.
    unsafe {
        drop(Box::from_raw((*program).cast::<Program>()));
        *program = std::ptr::null_mut();
    }
    0
}

/// Returns the number of bytes, or copies them.
unsafe fn output(program: *mut c_void, of: fn(&Program) -> &[u8], size: *mut usize, to: *mut c_char) -> c_int {
    // SAFETY: the program is from `nvrtcCreateProgram`; the caller passes a pointer to the number, or room for the
    // bytes.
    unsafe {
        let Some(program) = program.cast::<Program>().as_ref() else { return INVALID_PROGRAM };
        let bytes = of(program);
        if !size.is_null() {
            *size = bytes.len();
        }
        if !to.is_null() {
            to.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetProgramLogSize(program: *mut c_void, to: *mut usize) -> c_int {
    // SAFETY: the caller's pointers are passed on.
    unsafe { output(program, |p| p.log.as_bytes_with_nul(), to, std::ptr::null_mut()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetProgramLog(program: *mut c_void, to: *mut c_char) -> c_int {
    // SAFETY: the caller's pointers are passed on.
    unsafe { output(program, |p| p.log.as_bytes_with_nul(), std::ptr::null_mut(), to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetCUBINSize(program: *mut c_void, to: *mut usize) -> c_int {
    // SAFETY: the caller's pointers are passed on.
    unsafe { output(program, |p| &p.image, to, std::ptr::null_mut()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetCUBIN(program: *mut c_void, to: *mut c_char) -> c_int {
    // SAFETY: the caller's pointers are passed on.
    unsafe { output(program, |p| &p.image, std::ptr::null_mut(), to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcGetErrorString(code: c_int) -> *const c_char {
    let text = match code {
        0 => c"NVRTC_SUCCESS",
        INVALID_INPUT => c"NVRTC_ERROR_INVALID_INPUT",
        INVALID_PROGRAM => c"NVRTC_ERROR_INVALID_PROGRAM",
        INVALID_OPTION => c"NVRTC_ERROR_INVALID_OPTION",
        _ => c"NVRTC_ERROR_INTERNAL_ERROR",
    };
    text.as_ptr()
}
