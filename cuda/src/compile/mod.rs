//! From the kernels' texts to cubins: a pack that was built beforehand, this machine's cache, or NVIDIA's compiler
//! (NVRTC), which is loaded when it is needed. Building the engine needs no CUDA toolkit.

mod cache;
mod nvrtc;
mod pack;
mod places;
mod report;

pub use cache::Cache;
pub use nvrtc::{Compiled, Nvrtc};
pub use pack::{Manifest, Pack, build};
pub use places::{Cubin, Kernels, Places};
pub use report::Resources;

use crate::arch::Arch;
use crate::kernels::{FILES, File, HEADERS};
use crate::search::listed;
use std::path::PathBuf;

/// What the compiler is told beside the architecture. Products and sums are fused only where a kernel says so,
/// as in the emulator; the report of registers does not change the cubin.
pub const OPTIONS: [&str; 3] = ["--std=c++20", "--fmad=false", "--ptxas-options=-v"];

/// Why there are no kernels for a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no NVRTC (libnvrtc.so of CUDA 12 or 13) to compile the CUDA kernels{}: install it with \
         `pip install {}` for the python3 in PATH, or name its folder in SWALLOW_CUDA_LIBS; a machine without it \
         takes a pack (`swallow-engine kernels build`) from the folder named in SWALLOW_KERNELS",
        listed(.tried), wheel(*.driver)
    )]
    NoCompiler {
        /// What was found and why it does not do.
        tried: Vec<String>,
        /// The CUDA version of the driver, where there is one.
        driver: Option<u32>,
    },
    #[error("{arch}: NVRTC {version} ({}) does not know this architecture; install a newer one", .path.display())]
    UnknownArch { arch: Arch, version: Version, path: PathBuf },
    #[error("NVRTC {version} does not compile {file} for {arch}, which is a bug of this program:\n{log}")]
    Compile { file: &'static str, arch: Arch, version: Version, log: String },
    #[error(
        "{}: this pack was built from other kernels (sources {}) than this program holds ({}): build it anew with \
         `swallow-engine kernels build`", .path.display(), short(.pack), short(.program)
    )]
    StalePack { path: PathBuf, pack: String, program: String },
    #[error("{}: {what}; build it anew with `swallow-engine kernels build`", .path.display())]
    BadPack { path: PathBuf, what: String },
    #[error(
        "{}: this pack was built by NVRTC {version}, and the driver of this machine is one of CUDA {driver}: install a \
         newer driver, or build the pack with NVRTC {driver} (--nvrtc)", .path.display()
    )]
    NewPack { path: PathBuf, version: Version, driver: u32 },
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

pub type Result<T> = std::result::Result<T, Error>;

/// Of a compiler. A driver loads what was made for its major version or an older one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::str::FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let (major, minor) = text.split_once('.').unwrap_or((text, ""));
        Ok(Version { major: major.parse()?, minor: minor.parse()? })
    }
}

/// Of all texts and options: a pack must have been made of the same.
pub fn sources() -> String {
    let mut hash = hasher();
    FILES.iter().for_each(|file| feed(&mut hash, &[file.name, file.text]));
    hash.finalize().to_hex().to_string()
}

/// Of all that a cubin depends on.
fn key(file: &File, arch: Arch, version: Version) -> blake3::Hash {
    let mut hash = hasher();
    feed(&mut hash, &[file.name, file.text, &arch.to_string(), &version.to_string()]);
    hash.finalize()
}

fn hasher() -> blake3::Hasher {
    let mut hash = blake3::Hasher::new();
    feed(&mut hash, &OPTIONS);
    HEADERS.iter().for_each(|(name, text)| feed(&mut hash, &[name, text]));
    hash
}

/// Each with its length before it, so that nothing can move from one to the next.
fn feed(hash: &mut blake3::Hasher, texts: &[&str]) {
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
}

/// The wheel whose cubins the driver loads.
fn wheel(driver: Option<u32>) -> &'static str {
    if driver.is_some_and(|major| major < 13) { "nvidia-cuda-nvrtc-cu12" } else { "nvidia-cuda-nvrtc" }
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_all_that_a_cubin_depends_on() {
        let file = |text| File { name: "a.cu", text, kernels: &[], only: None };
        let (old, new) = (Version { major: 12, minor: 9 }, Version { major: 13, minor: 0 });
        let (ampere, orin) = (Arch::named("sm_80").unwrap(), Arch::named("sm_87").unwrap());
        let one = key(&file("x"), ampere, old);
        assert_eq!(one, key(&file("x"), ampere, old));
        for other in [key(&file("y"), ampere, old), key(&file("x"), orin, old), key(&file("x"), ampere, new)] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn a_version_is_read_as_it_is_written() {
        assert_eq!("12.9".parse(), Ok(Version { major: 12, minor: 9 }));
        for wrong in ["", "12", "a.b", "12."] {
            assert!(wrong.parse::<Version>().is_err());
        }
    }

    #[test]
    fn what_to_install_fits_the_driver() {
        let said = |driver| Error::NoCompiler { tried: vec!["x".into()], driver }.to_string();
        assert!(said(Some(12)).contains("nvidia-cuda-nvrtc-cu12") && said(Some(12)).contains("(x)"));
        assert!(said(Some(13)).contains("`pip install nvidia-cuda-nvrtc`"));
    }
}
