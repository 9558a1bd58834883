//! NCCL's own functions, of a library that is loaded where ranks meet. cudarc's loader does not know the names under
//! which NCCL is installed (`libnccl.so.2`), so this is a table of its own.

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// `ncclResult_t`; 0 is success.
pub(super) type Code = c_int;
pub(super) const IN_PROGRESS: Code = 7;
/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;
/// `cudaStream_t`.
pub(super) type Stream = *mut c_void;

/// `ncclUniqueId`: how ranks that are to be a communicator find each other.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId(pub [u8; 128]);

type To = *mut c_void;
type From = *const c_void;

/// As `nccl.h` of 2.18 and later declares them.
pub struct Nccl {
    pub(super) unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    pub(super) init: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> Code,
    pub(super) finalize: unsafe extern "C" fn(Comm) -> Code,
    pub(super) destroy: unsafe extern "C" fn(Comm) -> Code,
    pub(super) abort: unsafe extern "C" fn(Comm) -> Code,
    pub(super) async_error: unsafe extern "C" fn(Comm, *mut Code) -> Code,
    pub(super) group_start: unsafe extern "C" fn() -> Code,
    pub(super) group_end: unsafe extern "C" fn() -> Code,
    pub(super) all_reduce: unsafe extern "C" fn(From, To, usize, c_int, c_int, Comm, Stream) -> Code,
    pub(super) all_gather: unsafe extern "C" fn(From, To, usize, c_int, Comm, Stream) -> Code,
    pub(super) reduce_scatter: unsafe extern "C" fn(From, To, usize, c_int, c_int, Comm, Stream) -> Code,
    pub(super) send: unsafe extern "C" fn(From, usize, c_int, c_int, Comm, Stream) -> Code,
    pub(super) recv: unsafe extern "C" fn(To, usize, c_int, c_int, Comm, Stream) -> Code,
    error: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    version: c_int,
    path: PathBuf,
    /// It stays loaded: it has threads of its own.
    _library: ManuallyDrop<Library>,
}

impl Nccl {
    pub(super) fn load(path: &Path) -> Result<Nccl, libloading::Error> {
        // SAFETY: loading NCCL runs its own initialisers and nothing else; the names have these types since 2.18
        // (`nccl.h`), and a library without one of them is refused here.
        unsafe {
            let library = Library::open(Some(path), RTLD_NOW | RTLD_LOCAL)?;
            macro_rules! named {
                ($name:literal) => {
                    *library.get($name)?
                };
            }
            let get_version: unsafe extern "C" fn(*mut c_int) -> Code = named!(b"ncclGetVersion");
            let mut version = 0;
            get_version(&mut version);
            Ok(Nccl {
                unique_id: named!(b"ncclGetUniqueId"),
                init: named!(b"ncclCommInitRank"),
                finalize: named!(b"ncclCommFinalize"),
                destroy: named!(b"ncclCommDestroy"),
                abort: named!(b"ncclCommAbort"),
                async_error: named!(b"ncclCommGetAsyncError"),
                group_start: named!(b"ncclGroupStart"),
                group_end: named!(b"ncclGroupEnd"),
                all_reduce: named!(b"ncclAllReduce"),
                all_gather: named!(b"ncclAllGather"),
                reduce_scatter: named!(b"ncclReduceScatter"),
                send: named!(b"ncclSend"),
                recv: named!(b"ncclRecv"),
                error: named!(b"ncclGetErrorString"),
                last_error: named!(b"ncclGetLastError"),
                version,
                path: path.to_path_buf(),
                _library: ManuallyDrop::new(library),
            })
        }
    }

    /// As NCCL counts: 2.18.3 is 21803.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the call went well, or NCCL's words.
    pub(super) fn checked(&self, code: Code, comm: Comm) -> Result<(), String> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: NCCL gives text that lives as long as the library; a null communicator is allowed.
        let (what, last) = unsafe { (text((self.error)(code)), text((self.last_error)(comm))) };
        Err(if last.is_empty() || last == what { what } else { format!("{what}: {last}") })
    }
}

/// # Safety
/// `at` is null or a text that ends with a zero.
unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().trim().into()
}

/// A version as NCCL is named: 2.18.3 of 21803; before 2.9 NCCL counted otherwise.
pub fn shown(version: i32) -> String {
    match version {
        ..10000 => format!("{}.{}.{}", version / 1000, version / 100 % 10, version % 100),
        _ => format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_nccl_is_named() {
        assert_eq!([2708, 21803, 22703].map(shown), ["2.7.8", "2.18.3", "2.27.3"]);
    }
}
