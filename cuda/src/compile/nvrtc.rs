//! Bindings to NVIDIA's run-time compiler, which is loaded when kernels must be compiled.

use super::{Error, OPTIONS, Resources, Result, Version, report};
use crate::arch::Arch;
use crate::kernels::{File, HEADERS};
use crate::search::{Search, functions};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// A compiled file of kernels.
pub struct Compiled {
    pub cubin: Vec<u8>,
    pub kernels: Vec<Resources>,
    /// Warnings of ptxas.
    pub warnings: Vec<String>,
}

impl Compiled {
    /// The compiler's warnings, and the kernels that it made slow.
    pub fn complaints(&self) -> Vec<String> {
        let spills = self.kernels.iter().filter(|kernel| kernel.spill_stores > 0);
        let spills = spills.map(|kernel| format!("{} spills {} bytes a thread", kernel.kernel, kernel.spill_stores));
        self.warnings.iter().cloned().chain(spills).collect()
    }
}

/// A loaded compiler.
pub struct Nvrtc {
    api: Api,
    version: Version,
    path: PathBuf,
}

/// Names for the system's loader.
const SONAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// `nvrtcResult`; 0 is success.
type Code = c_int;
type Handle = *mut c_void;
type Texts = *const *const c_char;

functions! {
    /// The functions as `nvrtc.h` of CUDA 11.2 and later declares them.
    struct Api {
        version: "nvrtcVersion" (*mut c_int, *mut c_int) -> Code,
        count_archs: "nvrtcGetNumSupportedArchs" (*mut c_int) -> Code,
        archs: "nvrtcGetSupportedArchs" (*mut c_int) -> Code,
        // Program, source, name; number, sources and names of headers.
        create: "nvrtcCreateProgram" (*mut Handle, *const c_char, *const c_char, c_int, Texts, Texts) -> Code,
        compile: "nvrtcCompileProgram" (Handle, c_int, Texts) -> Code,
        destroy: "nvrtcDestroyProgram" (*mut Handle) -> Code,
        log_size: "nvrtcGetProgramLogSize" (Handle, *mut usize) -> Code,
        log: "nvrtcGetProgramLog" (Handle, *mut c_char) -> Code,
        cubin_size: "nvrtcGetCUBINSize" (Handle, *mut usize) -> Code,
        cubin: "nvrtcGetCUBIN" (Handle, *mut c_char) -> Code,
        error: "nvrtcGetErrorString" (Code) -> *const c_char,
    }
}

impl Nvrtc {
    /// The first compiler that works and whose cubins a driver of major CUDA version `driver` loads.
    pub fn find(search: &Search, driver: Option<u32>) -> Result<Nvrtc> {
        let against = |nvrtc: &Nvrtc| Some(format!("NVRTC {}, {}", nvrtc.version, unfit(nvrtc.version, driver)?));
        search.first(&SONAMES, Nvrtc::open, against).map_err(|tried| Error::NoCompiler { tried, driver })
    }

    fn open(path: &Path) -> std::result::Result<Nvrtc, libloading::Error> {
        let api = Api::load(path)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the call sets both numbers.
        unsafe { (api.version)(&mut major, &mut minor) };
        Ok(Nvrtc { api, version: Version { major: major as u32, minor: minor as u32 }, path: path.to_path_buf() })
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_arch(&self, arch: Arch) -> Result<()> {
        let mut count = 0;
        // SAFETY: the call sets the number.
        let code = unsafe { (self.api.count_archs)(&mut count) };
        let mut known = vec![0; count.max(0) as usize];
        // SAFETY: there is room for the number of architectures that the library just returned.
        let code = code + unsafe { (self.api.archs)(known.as_mut_ptr()) };
        if code == 0 && known.contains(&(arch.number() as c_int)) {
            return Ok(());
        }
        Err(Error::UnknownArch { arch, version: self.version, path: self.path.clone() })
    }

    /// Compiles a file's kernels for one architecture.
    pub fn compile(&self, file: &File, arch: Arch) -> Result<Compiled> {
        self.check_arch(arch)?;
        let fail = |log| Error::Compile { file: file.name, arch, version: self.version, log };
        let program = Program::new(&self.api, file).map_err(fail)?;
        let done = program.compile(arch);
        let log = program.log();
        let cubin = done.and_then(|()| program.cubin()).map_err(|why| fail(format!("{why}\n{log}")))?;
        let (kernels, warnings) = report::read(&log);
        Ok(Compiled { cubin, kernels, warnings })
    }
}

/// Why a compiler is unsuitable, if it is.
fn unfit(version: Version, driver: Option<u32>) -> Option<String> {
    match driver {
        _ if version.major < 12 => Some("which lacks C++20".into()),
        Some(major) if version.major > major => {
            Some(format!("but this driver only loads what is made for CUDA {major}"))
        }
        _ => None,
    }
}

impl Api {
    fn load(path: &Path) -> std::result::Result<Api, libloading::Error> {
        // The compiler's builtins library lies beside it, and the compiler opens it by its bare name.
        let builtins = path.parent().map_or(Vec::new(), builtins);
        let load = |path: &PathBuf| {
            // SAFETY: loading a library of NVIDIA's only runs its own setup.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(ManuallyDrop::new)
        };
        // They stay loaded: a compiler registers handlers for the end of the process.
        let _builtins = builtins.iter().map(load).collect::<std::result::Result<Vec<_>, _>>()?;
        let nvrtc = load(&path.to_path_buf())?;
        // SAFETY: the types are those of `nvrtc.h`.
        unsafe { Api::of(&nvrtc) }
    }

    fn checked(&self, code: Code) -> std::result::Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: for every number the library returns a static string.
        Err(unsafe { CStr::from_ptr((self.error)(code)) }.to_string_lossy().into_owned())
    }
}

/// The builtins library in a folder; none for a bare name, since the loader then finds both.
fn builtins(folder: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|n| n.starts_with("libnvrtc-builtins.so.")).map(|name| folder.join(name)).collect()
}

/// A program being compiled.
struct Program<'a> {
    api: &'a Api,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(api: &'a Api, file: &File) -> std::result::Result<Self, String> {
        let (text, name) = (c_text(file.text), c_text(file.name));
        let (texts, names): (Vec<_>, Vec<_>) = HEADERS.iter().map(|(name, text)| (c_text(text), c_text(name))).unzip();
        let (texts, names) = (pointers(&texts), pointers(&names));
        let mut handle = std::ptr::null_mut();
        // SAFETY: every text ends in NUL and lives until the call returns; the library copies them.
        api.checked(unsafe {
            (api.create)(
                &mut handle,
                text.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        Ok(Program { api, handle })
    }

    fn compile(&self, arch: Arch) -> std::result::Result<(), String> {
        let arch = format!("--gpu-architecture={arch}");
        let options: Vec<CString> = OPTIONS.into_iter().chain([arch.as_str()]).map(c_text).collect();
        let options = pointers(&options);
        // SAFETY: the program is alive; the options end in NUL and live until the call returns.
        self.api.checked(unsafe { (self.api.compile)(self.handle, options.len() as c_int, options.as_ptr()) })
    }

    fn log(&self) -> String {
        let text = self.bytes(self.api.log_size, self.api.log).unwrap_or_default();
        String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(&text)).trim_end().to_string()
    }

    fn cubin(&self) -> std::result::Result<Vec<u8>, String> {
        self.bytes(self.api.cubin_size, self.api.cubin)
    }

    /// Bytes from a pair of functions, one for their number and one that copies them.
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Handle, *mut usize) -> Code,
        fill: unsafe extern "C" fn(Handle, *mut c_char) -> Code,
    ) -> std::result::Result<Vec<u8>, String> {
        let mut n = 0;
        // SAFETY: the program is alive, and the call sets `n`.
        self.api.checked(unsafe { size(self.handle, &mut n) })?;
        let mut bytes = vec![0; n];
        // SAFETY: there is room for the n bytes.
        self.api.checked(unsafe { fill(self.handle, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: `create` returned the handle, which is destroyed once. An error could not be handled.
        unsafe { (self.api.destroy)(&mut self.handle) };
    }
}

fn c_text(text: &str) -> CString {
    CString::new(text).expect("sources and options have no NUL")
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_must_fit_the_driver_and_support_the_language() {
        let says = |major, driver| unfit(Version { major, minor: 4 }, driver);
        assert_eq!([says(12, None), says(13, None), says(12, Some(12)), says(12, Some(13))], [None, None, None, None]);
        assert!(says(13, Some(12)).unwrap().contains("CUDA 12"));
        assert!(says(11, None).unwrap().contains("C++20"));
    }

    /// A file that is no compiler is listed with the reason, and does not stop the search.
    #[test]
    fn files_that_do_not_load_are_listed() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("libnvrtc.so.13");
        std::fs::write(&file, "not a library").unwrap();
        let Err(Error::NoCompiler { tried, .. }) = Nvrtc::find(&Search::only(tmp.path()), None) else {
            panic!("a text was taken for a compiler");
        };
        assert!(tried.len() == 1 && tried[0].contains(file.to_str().unwrap()) && tried[0].len() < 300, "{tried:?}");
    }
}
