//! Bindings to the functions of cuBLASLt that the engine calls, with owned handles, and errors.

use crate::compile::Version;
use crate::device;
use crate::machine::Fault;
use crate::product::Product;
use crate::search::{Search, functions, listed};
use cudarc::cublaslt::sys;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// Names for the system's loader.
const SONAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// `cublasStatus_t`, 0 on success. A number, because a newer library may return values that our header lacks.
pub(super) type Status = u32;

type Handle = *mut sys::cublasLtContext;
type Desc = sys::cublasLtMatmulDesc_t;
type Layout = sys::cublasLtMatrixLayout_t;
type Preference = sys::cublasLtMatmulPreference_t;

/// `cublasLtMatmulAlgo_t`: opaque words, valid in every process with this version of the library.
pub(super) type Algorithm = [u64; 8];

/// A proposed algorithm (`cublasLtMatmulHeuristicResult_t`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Proposal {
    pub algorithm: Algorithm,
    /// Required bytes.
    pub workspace: usize,
    pub state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Proposal>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

functions! {
    /// The functions as `cublasLt.h` of CUDA 12 declares them, with enums as numbers.
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
        // Handle, desc, a, b, c, d, preference; requested count, results, returned count.
        propose: "cublasLtMatmulAlgoGetHeuristic"
            (Handle, Desc, Layout, Layout, Layout, Layout, Preference, c_int, *mut Proposal, *mut c_int) -> Status,
        check: "cublasLtMatmulAlgoCheck"
            (Handle, Desc, Layout, Layout, Layout, Layout, *const Algorithm, *mut Proposal) -> Status,
        // Handle, desc, alpha, a, b, beta, c, d, algorithm, workspace and its bytes, stream.
        multiply: "cublasLtMatmul"
            (Handle, Desc, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void,
             *const c_void, Layout, *mut c_void, Layout, *const Algorithm, *mut c_void, usize, *mut c_void) -> Status,
    }
}

/// Why matrices cannot be multiplied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no cuBLASLt (libcublasLt.so of CUDA 12 or 13) for matrix multiplication{}: install it with \
         `pip install {}` for the python3 in PATH, or name its folder in SWALLOW_CUDA_LIBS (searched: the wheels of \
         that python3, CUDA_HOME, CUDA_PATH, /usr/local/cuda* and the system's loader)",
        listed(.tried), wheel(*.driver)
    )]
    NoLibrary {
        /// The libraries that were found, and why each is unsuitable.
        tried: Vec<String>,
        driver: Version,
    },
    #[error("{}: cuBLASLt does not start: {words}", .path.display())]
    Start { path: PathBuf, words: String },
    #[error(
        "{product}: the algorithm that another rank has chosen is not supported here: {why}; all ranks of a job need \
         devices of one kind and one version of cuBLASLt (here {version} on {device})"
    )]
    Mixed { product: Product, why: String, version: usize, device: String },
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Product(#[from] Fault),
}

/// The wheel that fits the driver.
fn wheel(driver: Version) -> &'static str {
    if driver.major < 13 { "nvidia-cublas-cu12" } else { "nvidia-cublas" }
}

/// A loaded cuBLASLt, with its handle for the current context.
pub(super) struct CublasLt {
    pub(super) handle: Owned<sys::cublasLtContext>,
    loaded: Loaded,
}

struct Loaded {
    api: Api,
    path: PathBuf,
}

impl CublasLt {
    /// Opens the first suitable library for a driver that supports CUDA version `driver`. The device's context must be
    /// current.
    pub fn open(search: &Search, driver: Version) -> Result<CublasLt, Error> {
        let against = |loaded: &Loaded| unfit(loaded.cuda(), driver);
        let loaded = search.first(&SONAMES, Loaded::open, against);
        let loaded = loaded.map_err(|tried| Error::NoLibrary { tried, driver })?;
        // SAFETY: the library's own function destroys the handle that it creates.
        let handle = unsafe { Owned::new(loaded.api.destroy, |at| (loaded.api.create)(at)) };
        match handle {
            Ok(handle) => Ok(CublasLt { handle, loaded }),
            Err(status) => Err(Error::Start { words: loaded.words(status), path: loaded.path }),
        }
    }

    /// The library's version number: 120901 is 12.9.1.
    pub fn version(&self) -> usize {
        // SAFETY: the call only returns a number.
        unsafe { (self.loaded.api.version)() }
    }

    pub fn path(&self) -> &Path {
        &self.loaded.path
    }

    pub(super) fn api(&self) -> &Api {
        &self.loaded.api
    }

    /// Checks the status of a call; the error is the library's message.
    pub fn checked(&self, status: Status) -> Result<(), String> {
        if status == 0 { Ok(()) } else { Err(self.loaded.words(status)) }
    }

    /// Creates a handle; the error is the library's message.
    ///
    /// # Safety
    /// `destroy` destroys what `create` creates.
    pub unsafe fn create<T>(
        &self,
        destroy: unsafe extern "C" fn(*mut T) -> Status,
        create: impl FnOnce(*mut *mut T) -> Status,
    ) -> Result<Owned<T>, String> {
        // SAFETY: this function's contract.
        unsafe { Owned::new(destroy, create) }.map_err(|status| self.loaded.words(status))
    }
}

impl Loaded {
    fn open(path: &Path) -> Result<Loaded, libloading::Error> {
        // SAFETY: loading a library of NVIDIA's only runs its own setup.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
        // It stays loaded: its handles are destroyed by its functions, and its threads may outlive them.
        let library = ManuallyDrop::new(library);
        // SAFETY: the types are those of `cublasLt.h`.
        Ok(Loaded { api: unsafe { Api::of(&library) }?, path: path.to_path_buf() })
    }

    /// The CUDA version that it was built for.
    fn cuda(&self) -> Version {
        // SAFETY: the call only returns a number.
        let version = unsafe { (self.api.cuda)() } as u32;
        Version { major: version / 1000, minor: version % 1000 / 10 }
    }

    fn words(&self, status: Status) -> String {
        // SAFETY: for every number the library returns static strings.
        let [name, words] =
            [self.api.status_name, self.api.status_words].map(|say| unsafe { CStr::from_ptr(say(status)) });
        format!("{} ({})", words.to_string_lossy(), name.to_string_lossy())
    }
}

/// Why a library is unsuitable, if it is.
fn unfit(library: Version, driver: Version) -> Option<String> {
    match library.major {
        0..12 => Some(format!("for CUDA {library}, and 12 or newer is needed")),
        major if major > driver.major => Some(format!("for CUDA {library}, and the driver supports CUDA {driver}")),
        _ => None,
    }
}

/// A handle of the library, destroyed once.
pub(super) struct Owned<T> {
    at: *mut T,
    destroy: unsafe extern "C" fn(*mut T) -> Status,
}

impl<T> Owned<T> {
    /// # Safety
    /// `destroy` destroys what `create` creates, and its library stays loaded.
    unsafe fn new(
        destroy: unsafe extern "C" fn(*mut T) -> Status,
        create: impl FnOnce(*mut *mut T) -> Status,
    ) -> Result<Self, Status> {
        let mut at = std::ptr::null_mut();
        match create(&mut at) {
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
        // SAFETY: it was created once, and this function destroys it. An error could not be handled.
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
        assert!(says(13, 12).unwrap().contains("driver supports CUDA 12.2"));
        assert!(says(11, 12).unwrap().contains("12 or newer"));
    }
}
