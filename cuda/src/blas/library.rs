//! The functions of cuBLASLt that are called, and what they hand out, given back when dropped.

use crate::compile::Version;
use crate::search::{Search, functions};
use cudarc::cublaslt::sys;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// What the system's loader is asked for.
const SONAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// 0 where a call went well. A newer library may have numbers that no header of ours knows.
pub(super) type Status = u32;

type Handle = *mut sys::cublasLtContext;
type Desc = sys::cublasLtMatmulDesc_t;
type Layout = sys::cublasLtMatrixLayout_t;
type Preference = sys::cublasLtMatmulPreference_t;

/// An algorithm: opaque numbers that mean the same to every process with this version of the library.
pub(super) type Algorithm = [u64; 8];

/// What the library proposes (`cublasLtMatmulHeuristicResult_t`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Proposal {
    pub algorithm: Algorithm,
    /// Bytes that it needs.
    pub workspace: usize,
    pub state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Proposal>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

functions! {
    /// As `cublasLt.h` of CUDA 12 declares them. Types and attributes are numbers.
    pub(super) struct Api {
        version: "cublasLtGetVersion" () -> usize,
        cuda: "cublasLtGetCudartVersion" () -> usize,
        status_name: "cublasLtGetStatusName" (Status) -> *const c_char,
        status_words: "cublasLtGetStatusString" (Status) -> *const c_char,
        create: "cublasLtCreate" (*mut Handle) -> Status,
        destroy: "cublasLtDestroy" (Handle) -> Status,
        desc: "cublasLtMatmulDescCreate" (*mut Desc, u32, u32) -> Status,
        desc_set: "cublasLtMatmulDescSetAttribute" (Desc, u32, *const c_void, usize) -> Status,
        desc_destroy: "cublasLtMatmulDescDestroy" (Desc) -> Status,
        layout: "cublasLtMatrixLayoutCreate" (*mut Layout, u32, u64, u64, i64) -> Status,
        layout_destroy: "cublasLtMatrixLayoutDestroy" (Layout) -> Status,
        preference: "cublasLtMatmulPreferenceCreate" (*mut Preference) -> Status,
        preference_set: "cublasLtMatmulPreferenceSetAttribute" (Preference, u32, *const c_void, usize) -> Status,
        preference_destroy: "cublasLtMatmulPreferenceDestroy" (Preference) -> Status,
        // Handle, product, a, b, c, d, preference; how many are asked for, where to, how many there are.
        propose: "cublasLtMatmulAlgoGetHeuristic"
            (Handle, Desc, Layout, Layout, Layout, Layout, Preference, c_int, *mut Proposal, *mut c_int) -> Status,
        check: "cublasLtMatmulAlgoCheck"
            (Handle, Desc, Layout, Layout, Layout, Layout, *const Algorithm, *mut Proposal) -> Status,
        // Handle, product, alpha, a, b, beta, c, d, algorithm, workspace and its bytes, stream.
        multiply: "cublasLtMatmul"
            (Handle, Desc, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void,
             *const c_void, Layout, *mut c_void, Layout, *const Algorithm, *mut c_void, usize, *mut c_void) -> Status,
    }
}

/// cuBLASLt of one file, with its handle for the current context.
pub(super) struct CublasLt {
    pub(super) handle: Owned<sys::cublasLtContext>,
    loaded: Loaded,
}

struct Loaded {
    api: Api,
    path: PathBuf,
}

/// Why cuBLASLt does not come about.
pub(super) enum Failure {
    /// What was tried.
    None(Vec<String>),
    Start {
        path: PathBuf,
        words: String,
    },
}

impl CublasLt {
    /// The first that there is and that a driver of CUDA version `driver` runs. The device's context is current.
    pub fn open(search: &Search, driver: Version) -> Result<CublasLt, Failure> {
        let against = |loaded: &Loaded| unfit(loaded.cuda(), driver);
        let loaded = search.first(&SONAMES, Loaded::open, against).map_err(Failure::None)?;
        // SAFETY: the handle that is made is given back by the library's own function.
        let handle = unsafe { Owned::made(loaded.api.destroy, |at| (loaded.api.create)(at)) };
        match handle {
            Ok(handle) => Ok(CublasLt { handle, loaded }),
            Err(status) => Err(Failure::Start { words: loaded.words(status), path: loaded.path }),
        }
    }

    /// As the library counts: 120901 is 12.9.1.
    pub fn version(&self) -> usize {
        // SAFETY: it only returns a number.
        unsafe { (self.loaded.api.version)() }
    }

    pub fn path(&self) -> &Path {
        &self.loaded.path
    }

    pub(super) fn api(&self) -> &Api {
        &self.loaded.api
    }

    /// An error of a call, in the library's words.
    pub fn said(&self, status: Status) -> Result<(), String> {
        if status == 0 { Ok(()) } else { Err(self.loaded.words(status)) }
    }

    /// What `make` makes, or the library's words.
    ///
    /// # Safety
    /// `destroy` gives back what `make` made.
    pub unsafe fn made<T>(
        &self,
        destroy: unsafe extern "C" fn(*mut T) -> Status,
        make: impl FnOnce(*mut *mut T) -> Status,
    ) -> Result<Owned<T>, String> {
        // SAFETY: this function's contract.
        unsafe { Owned::made(destroy, make) }.map_err(|status| self.loaded.words(status))
    }
}

impl Loaded {
    fn open(path: &Path) -> Result<Loaded, libloading::Error> {
        // SAFETY: NVIDIA's libraries start nothing when they are loaded but their own set-up.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
        // It stays loaded: what it hands out is given back by its functions, and its threads may outlive that.
        let library = ManuallyDrop::new(library);
        // SAFETY: the types are those of `cublasLt.h`.
        Ok(Loaded { api: unsafe { Api::of(&library) }?, path: path.to_path_buf() })
    }

    /// The CUDA version that it is made for.
    fn cuda(&self) -> Version {
        // SAFETY: it only returns a number.
        let version = unsafe { (self.api.cuda)() } as u32;
        Version { major: version / 1000, minor: version % 1000 / 10 }
    }

    fn words(&self, status: Status) -> String {
        // SAFETY: the library answers every number with texts of its own that live as long as it does.
        let [name, words] =
            [self.api.status_name, self.api.status_words].map(|say| unsafe { CStr::from_ptr(say(status)) });
        format!("{} ({})", words.to_string_lossy(), name.to_string_lossy())
    }
}

/// Why a library will not do.
fn unfit(library: Version, driver: Version) -> Option<String> {
    match library.major {
        0..12 => Some(format!("of CUDA {library}, and 12 or newer is needed")),
        major if major > driver.major => Some(format!("of CUDA {library}, and the driver is one of CUDA {driver}")),
        _ => None,
    }
}

/// Something of the library's that is given back once.
pub(super) struct Owned<T> {
    at: *mut T,
    destroy: unsafe extern "C" fn(*mut T) -> Status,
}

impl<T> Owned<T> {
    /// # Safety
    /// `destroy` gives back what `make` made, and its library stays loaded.
    unsafe fn made(
        destroy: unsafe extern "C" fn(*mut T) -> Status,
        make: impl FnOnce(*mut *mut T) -> Status,
    ) -> Result<Self, Status> {
        let mut at = std::ptr::null_mut();
        match make(&mut at) {
            0 => Ok(Owned { at, destroy }),
            status => Err(status),
        }
    }

    pub fn at(&self) -> *mut T {
        self.at
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: it was made once, for this function to give back. What that says changes nothing.
        unsafe { (self.destroy)(self.at) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_must_fit_the_driver() {
        let says = |library, driver| unfit(Version { major: library, minor: 4 }, Version { major: driver, minor: 2 });
        assert_eq!([says(12, 12), says(12, 13), says(13, 13)], [None, None, None]);
        assert!(says(13, 12).unwrap().contains("driver is one of CUDA 12.2"));
        assert!(says(11, 12).unwrap().contains("12 or newer"));
    }
}
