//! PTX from NVRTC. The engine fetches cubins alone, so the two functions that return PTX are bound here; the library is
//! found and loaded by the engine's own search.

use cuda::arch::Arch;
use cuda::compile::{Nvrtc, OPTIONS};
use cuda::kernels::{File, HEADERS};
use cuda::search::Search;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::null_mut;

/// `nvrtcResult`; 0 is success.
type Code = c_int;
type Handle = *mut c_void;
type Texts = *const *const c_char;
type Size = unsafe extern "C" fn(Handle, *mut usize) -> Code;
type Fill = unsafe extern "C" fn(Handle, *mut c_char) -> Code;

/// The functions as `nvrtc.h` declares them.
pub struct Compiler {
    create: unsafe extern "C" fn(*mut Handle, *const c_char, *const c_char, c_int, Texts, Texts) -> Code,
    compile: unsafe extern "C" fn(Handle, c_int, Texts) -> Code,
    destroy: unsafe extern "C" fn(*mut Handle) -> Code,
    log: (Size, Fill),
    ptx: (Size, Fill),
}

/// A passage of a header and its replacement.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    pub header: &'static str,
    pub find: &'static str,
    pub replace: &'static str,
}

impl Compiler {
    /// This machine's compiler, or why there is none.
    pub fn find() -> Result<Compiler, String> {
        let nvrtc = Nvrtc::find(&Search::of(|name| std::env::var_os(name)), None).map_err(|e| e.to_string())?;
        let path = nvrtc.path();
        // SAFETY: the search has loaded this library, which stays loaded; the types are those of `nvrtc.h`.
        unsafe {
            let open = || -> Result<Compiler, libloading::Error> {
                let library = Box::leak(Box::new(Library::open(Some(path), RTLD_NOW | RTLD_LOCAL)?));
                let pair = |size: &str, fill: &str| -> Result<(Size, Fill), libloading::Error> {
                    Ok((*library.get(size.as_bytes())?, *library.get(fill.as_bytes())?))
                };
                Ok(Compiler {
                    create: *library.get(b"nvrtcCreateProgram")?,
                    compile: *library.get(b"nvrtcCompileProgram")?,
                    destroy: *library.get(b"nvrtcDestroyProgram")?,
                    log: pair("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?,
                    ptx: pair("nvrtcGetPTXSize", "nvrtcGetPTX")?,
                })
            };
            open().map_err(|e| e.to_string())
        }
    }

    /// The PTX of a file with the engine's options, with these changes of its headers. Only the front end runs, since
    /// the architecture is a virtual one.
    pub fn ptx(&self, file: &File, arch: Arch, changes: &[Change]) -> Result<String, String> {
        let mut headers = HEADERS.iter().map(|(name, text)| (*name, text.to_string())).collect::<Vec<_>>();
        for change in changes {
            let (_, text) = headers.iter_mut().find(|(name, _)| *name == change.header).expect("the header's name");
            assert_eq!(text.matches(change.find).count(), 1, "{}: {:?}", change.header, change.find);
            *text = text.replace(change.find, change.replace);
        }
        let (names, texts): (Vec<_>, Vec<_>) = headers.iter().map(|(name, text)| (c_text(name), c_text(text))).unzip();
        let (text, name) = (c_text(file.text), c_text(file.name));
        let arch = format!("--gpu-architecture={}", arch.to_string().replace("sm_", "compute_"));
        let options = OPTIONS.into_iter().filter(|o| !o.starts_with("--ptxas")).chain([arch.as_str()]);
        let options = options.map(c_text).collect::<Vec<_>>();
        let [names, texts, options] = [&names, &texts, &options].map(|all| pointers(all));
        let n = names.len() as c_int;
        let mut program = null_mut();
        // SAFETY: every text ends in NUL and lives until the calls return; the program is destroyed once, at the end.
        unsafe {
            let code = (self.create)(&mut program, text.as_ptr(), name.as_ptr(), n, texts.as_ptr(), names.as_ptr());
            assert_eq!(code, 0, "NVRTC refuses {}", file.name);
            let done = match (self.compile)(program, options.len() as c_int, options.as_ptr()) {
                0 => Ok(fetched(program, self.ptx)),
                _ => Err(fetched(program, self.log)),
            };
            (self.destroy)(&mut program);
            done
        }
    }
}

/// A text from a pair of functions, one for its length and one that copies it.
///
/// # Safety
/// The program is alive, and the functions are such a pair.
unsafe fn fetched(program: Handle, (size, fill): (Size, Fill)) -> String {
    let mut n = 0;
    // SAFETY: the call sets `n`.
    unsafe { size(program, &mut n) };
    let mut bytes = vec![0u8; n];
    // SAFETY: there is room for the n bytes.
    unsafe { fill(program, bytes.as_mut_ptr().cast()) };
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(&bytes)).into_owned()
}

fn c_text(text: impl AsRef<str>) -> CString {
    CString::new(text.as_ref()).expect("sources and options have no NUL")
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}
