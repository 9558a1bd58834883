//! The search for NVIDIA's libraries: in folders named by the user, wheels of the Python in PATH, toolkits, and
//! wherever the system's loader looks. Python itself is not run.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The places that are searched for a library, in this order.
#[derive(Debug, Clone)]
pub struct Search {
    folders: Vec<PathBuf>,
    last: Last,
}

/// The place that is searched after the folders.
#[derive(Debug, Clone)]
enum Last {
    /// The places where the system's loader looks.
    Loader,
    /// Only this file.
    File(PathBuf),
    Nowhere,
}

impl Search {
    /// The search by environment variables: SWALLOW_CUDA_LIBS, VIRTUAL_ENV, PATH, HOME, CUDA_HOME and CUDA_PATH.
    pub fn of(var: impl Fn(&str) -> Option<OsString>) -> Search {
        Search { folders: folders(var, Path::new("/")), last: Last::Loader }
    }

    /// A search of only this file or folder.
    pub fn only(path: &Path) -> Search {
        match path.is_dir() {
            true => Search { folders: vec![path.to_path_buf()], last: Last::Nowhere },
            false => Search { folders: Vec::new(), last: Last::File(path.to_path_buf()) },
        }
    }

    /// Candidate files for a library with these sonames (`libnccl.so.2`), the best first. The bare names, for the
    /// system's loader, come last.
    pub fn files_of(&self, sonames: &[&str]) -> Vec<PathBuf> {
        let mut files = files(&self.folders, sonames[0]);
        match &self.last {
            Last::Loader => files.extend(sonames.iter().map(PathBuf::from)),
            Last::File(file) => files.push(file.clone()),
            Last::Nowhere => {}
        }
        files
    }

    /// The first candidate that opens and that `against` has no objection to; the error lists why each is unsuitable.
    pub(crate) fn first<T>(
        &self,
        sonames: &[&str],
        open: impl Fn(&Path) -> Result<T, libloading::Error>,
        against: impl Fn(&T) -> Option<String>,
    ) -> Result<T, Vec<String>> {
        let mut tried = Vec::new();
        for path in self.files_of(sonames) {
            match open(&path) {
                Ok(library) => match against(&library) {
                    None => return Ok(library),
                    Some(why) => tried.push(format!("{} is {why}", path.display())),
                },
                // That the system's loader does not know a name is not worth reporting.
                Err(_) if path.parent() == Some(Path::new("")) => {}
                Err(why) => tried.push(cause(&why).to_string()),
            }
        }
        Err(tried)
    }
}

/// The loader's error, which names the file.
fn cause(error: &dyn std::error::Error) -> &dyn std::error::Error {
    error.source().map_or(error, cause)
}

/// The unsuitable candidates in parentheses, for an error message.
pub(crate) fn listed(tried: &[String]) -> String {
    if tried.is_empty() { String::new() } else { format!(" ({})", tried.join("; ")) }
}

/// Declares a struct with the functions of a library, by symbol name.
macro_rules! functions {
    ($(#[$about:meta])* $see:vis struct $Api:ident { $($field:ident: $name:literal $args:tt -> $back:ty,)* }) => {
        $(#[$about])*
        $see struct $Api {
            $($see $field: unsafe extern "C" fn $args -> $back,)*
        }

        impl $Api {
            /// # Safety
            /// The library's header declares the functions like this, and the library stays loaded while they are
            /// called.
            unsafe fn of(library: &libloading::os::unix::Library) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: the caller guarantees the types.
                unsafe { Ok($Api { $($field: *library.get(concat!($name, "\0").as_bytes())?,)* }) }
            }
        }
    };
}
pub(crate) use functions;

fn folders(var: impl Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let paths = |name| var(name).map_or(Vec::new(), |list| std::env::split_paths(&list).collect());
    let mut folders = paths("SWALLOW_CUDA_LIBS");
    let mut prefixes = paths("VIRTUAL_ENV");
    prefixes.extend(paths("PATH").iter().flat_map(|dir| pythons(dir)));
    prefixes.extend(var("HOME").map(|home| Path::new(&home).join(".local")));
    folders.extend(prefixes.iter().flat_map(|prefix| wheels(prefix)));

    let mut toolkits = [paths("CUDA_HOME"), paths("CUDA_PATH")].concat();
    toolkits.extend(newest_first(&root.join("usr/local"), |name| name.starts_with("cuda")));
    folders
        .extend(toolkits.iter().flat_map(|kit| ["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| kit.join(lib))));
    folders
}

/// The prefixes of the `python3` in a folder of PATH: of its path (a virtual environment), of its real path, and
/// pyenv's versions if the folder is pyenv's `shims`.
fn pythons(dir: &Path) -> Vec<PathBuf> {
    let python = dir.join("python3");
    if !python.exists() {
        return Vec::new();
    }
    let above = |path: &Path| path.parent().and_then(Path::parent).map(Path::to_path_buf);
    let mut prefixes = Vec::from_iter(above(&python));
    if dir.ends_with("shims") {
        prefixes.extend(newest_first(&dir.with_file_name("versions"), |_| true));
    }
    prefixes.extend(python.canonicalize().ok().and_then(|python| above(&python)));
    prefixes
}

/// Library folders of the wheels below a prefix, and conda's `lib`.
fn wheels(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for lib in ["lib", "lib64", "local/lib"].map(|lib| prefix.join(lib)) {
        for python in newest_first(&lib, |name| name.starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"].map(|packages| python.join(packages).join("nvidia")) {
                let parts = newest_first(&packages, |_| true);
                folders.extend(parts.iter().map(|part| part.join("lib")));
            }
        }
    }
    folders.push(prefix.join("lib"));
    folders
}

/// The libraries in these folders named `soname` with any version number, the newest of each folder first.
fn files(folders: &[PathBuf], soname: &str) -> Vec<PathBuf> {
    let (stem, _) = soname.split_once(".so").expect("a shared library's name");
    let stem = format!("{stem}.so");
    let found = folders.iter().flat_map(|folder| newest_first(folder, |name| name.starts_with(&stem)));
    // Names that resolve to one file are one library.
    let mut seen = HashSet::new();
    found.filter(|file| seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone()))).collect()
}

/// The entries of a folder with a wanted name, by version number: 3.12 is newer than 3.9.
fn newest_first(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| wanted(name)).collect();
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    names.sort_by(|a, b| numbers(b).cmp(&numbers(a)).then_with(|| a.cmp(b)));
    names.iter().map(|name| folder.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so.12"];

    fn touch(path: PathBuf) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }

    /// A machine with a library in every place: all are found, in the order of the list.
    #[test]
    fn named_folders_come_first_then_wheels_then_toolkits() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let libraries = [
            "named/libnvrtc.so.12",
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "venv/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "pyenv/versions/3.11.7/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "base/lib/python3.10/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "home/.local/lib/python3.10/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "toolkit/lib64/libnvrtc.so.13.0.88",
            "usr/local/cuda-12.10/lib64/libnvrtc.so.12",
            "usr/local/cuda-12.9/targets/x86_64-linux/lib/libnvrtc.so.12",
        ];
        libraries.iter().for_each(|file| touch(root.join(file)));
        // Other libraries with similar names.
        touch(root.join("named/libnvrtc.alt.so.12"));
        touch(root.join("named/libnvrtc-builtins.so.12.9"));
        symlink("libnvrtc.so.13.0.88", root.join("toolkit/lib64/libnvrtc.so.13")).unwrap();
        touch(root.join("base/bin/python3"));
        std::fs::create_dir_all(root.join("bin")).unwrap();
        symlink(root.join("base/bin/python3"), root.join("bin/python3")).unwrap();
        touch(root.join("pyenv/shims/python3"));

        let at = |name: &str| root.join(name).into_os_string();
        let path = std::env::join_paths([at("none"), at("pyenv/shims"), at("bin")]).unwrap();
        let var = |name: &str| match name {
            "SWALLOW_CUDA_LIBS" => Some(at("named")),
            "VIRTUAL_ENV" => Some(at("venv")),
            "PATH" => Some(path.clone()),
            "HOME" => Some(at("home")),
            "CUDA_HOME" => Some(at("toolkit")),
            _ => None,
        };
        let found = files(&folders(var, root), "libnvrtc.so.13");
        // Both names in the toolkit are one file.
        let found: Vec<PathBuf> = found.iter().map(|file| file.canonicalize().unwrap()).collect();
        assert_eq!(found, libraries.map(|file| root.canonicalize().unwrap().join(file)));
    }

    #[test]
    fn without_folders_only_the_loader_is_asked() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(files(&folders(|_| None, tmp.path()), NAMES[0]).is_empty());
        assert!(Search::of(|_| None).files_of(&NAMES).ends_with(&NAMES.map(PathBuf::from)));
    }

    /// Each library of CUDA 12 has its own wheel, those of CUDA 13 share one.
    #[test]
    fn every_wheel_is_searched() {
        let tmp = tempfile::tempdir().unwrap();
        let packages = tmp.path().join("lib/python3.12/site-packages/nvidia");
        let lies = ["nccl/lib/libnccl.so.2", "cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12"];
        lies.iter().for_each(|file| touch(packages.join(file)));
        touch(packages.join("cu13/lib/libcublas.so.13"));
        let found = |soname| files(&wheels(tmp.path()), soname);
        assert_eq!(found("libnccl.so.2"), [packages.join(lies[0])]);
        assert_eq!(found("libcublasLt.so.13"), [packages.join(lies[1]), packages.join(lies[2])]);
    }

    #[test]
    fn only_searches_one_folder_or_file() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("libnvrtc.so.12");
        touch(file.clone());
        assert_eq!(Search::only(tmp.path()).files_of(&NAMES), std::slice::from_ref(&file));
        assert_eq!(Search::only(&file).files_of(&NAMES), [file]);
    }
}
