//! Bindings to NCCL, loaded only for several ranks. cudarc's loader does not know the name under which NCCL is
//! installed (`libnccl.so.2`).

use crate::search::functions;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// `ncclResult_t`; 0 is success.
pub(super) type Code = c_int;
const IN_PROGRESS: Code = 7;
/// `ncclComm_t`.
type Comm = *mut c_void;
/// `cudaStream_t`.
type Stream = *mut c_void;

/// `ncclUniqueId`: the address at which the ranks of a new communicator meet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId(pub [u8; 128]);

/// `ncclConfig_t` of `nccl.h` 2.18. Later versions accept it by its size and version.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// NCCL_CONFIG_INITIALIZER, with at most `ctas` thread blocks a call.
    pub fn with_ctas(ctas: usize) -> Config {
        const MAGIC: c_uint = 0xcafe_beef;
        // NCCL_CONFIG_UNDEF_INT: NCCL chooses.
        const UNDEFINED: c_int = c_int::MIN;
        Config {
            size: size_of::<Config>(),
            magic: MAGIC,
            version: super::OLDEST as c_uint,
            blocking: UNDEFINED,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: ctas as c_int,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

type To = *mut c_void;
type From = *const c_void;

functions! {
    /// The functions as `nccl.h` of 2.18 and later declares them.
    pub(super) struct Api {
        get_version: "ncclGetVersion" (*mut c_int) -> Code,
        unique_id: "ncclGetUniqueId" (*mut UniqueId) -> Code,
        init: "ncclCommInitRankConfig" (*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Code,
        finalize: "ncclCommFinalize" (Comm) -> Code,
        destroy: "ncclCommDestroy" (Comm) -> Code,
        abort: "ncclCommAbort" (Comm) -> Code,
        async_error: "ncclCommGetAsyncError" (Comm, *mut Code) -> Code,
        group_start: "ncclGroupStart" () -> Code,
        group_end: "ncclGroupEnd" () -> Code,
        all_reduce: "ncclAllReduce" (From, To, usize, c_int, c_int, Comm, Stream) -> Code,
        all_gather: "ncclAllGather" (From, To, usize, c_int, Comm, Stream) -> Code,
        reduce_scatter: "ncclReduceScatter" (From, To, usize, c_int, c_int, Comm, Stream) -> Code,
        send: "ncclSend" (From, usize, c_int, c_int, Comm, Stream) -> Code,
        recv: "ncclRecv" (To, usize, c_int, c_int, Comm, Stream) -> Code,
        error: "ncclGetErrorString" (Code) -> *const c_char,
        last_error: "ncclGetLastError" (Comm) -> *const c_char,
    }
}

/// A loaded NCCL.
pub struct Nccl {
    pub(super) api: Api,
    version: c_int,
    path: PathBuf,
}

impl Nccl {
    pub(super) fn load(path: &Path) -> Result<Nccl, libloading::Error> {
        // SAFETY: loading NCCL only runs its own initializers.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
        // It stays loaded: it has threads of its own.
        let library = ManuallyDrop::new(library);
        // SAFETY: the types are those of `nccl.h`; a library that lacks one of the functions is refused here.
        let api = unsafe { Api::of(&library) }?;
        let mut version = 0;
        // SAFETY: the call sets the number.
        unsafe { (api.get_version)(&mut version) };
        Ok(Nccl { api, version, path: path.to_path_buf() })
    }

    /// NCCL's version number: 21803 is 2.18.3.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks the result of a call; the error is NCCL's message.
    pub(super) fn checked(&self, code: Code, comm: Comm) -> Result<(), String> {
        if code == 0 || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: NCCL returns text that lives as long as the library; the communicator may be null.
        let (what, last) = unsafe { (text((self.api.error)(code)), text((self.api.last_error)(comm))) };
        Err(if last.is_empty() || last == what { what } else { format!("{what}: {last}") })
    }
}

/// # Safety
/// `at` is null or a text that ends with NUL.
unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().trim().into()
}

/// A version as NCCL prints it: 2.18.3 for 21803. The encoding changed with 2.9.
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
    fn versions_read_as_nccl_prints_them() {
        assert_eq!([2708, 21803, 22703].map(shown), ["2.7.8", "2.18.3", "2.27.3"]);
    }
}
