//! Provides the kernels' cubins: from a pack built in advance, from this machine's cache, or from NVIDIA's run-time
//! compiler (NVRTC), which is loaded only if needed. Building the engine needs no CUDA toolkit.

mod cache;
mod nvrtc;
mod pack;
mod places;
mod report;

pub use cache::Cache;
pub(crate) use cache::write_atomically;
pub use nvrtc::{Compiled, Nvrtc};
pub use pack::{Manifest, Pack, build};
pub use places::{Cubin, Kernels, Places};
pub use report::Resources;

use crate::arch::Arch;
use crate::kernels::{FILES, File, HEADERS};
use crate::search::listed;
use std::path::PathBuf;

/// Compiler options besides the architecture. Multiplications and additions are fused only where a kernel says so, as
/// in the emulator; the report of registers does not change the cubin.
pub const OPTIONS: [&str; 3] = ["--std=c++20", "--fmad=false", "--ptxas-options=-v"];

/// Why kernels for a device cannot be provided.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no NVRTC (libnvrtc.so of CUDA 12 or 13) to compile the CUDA kernels{}: install it with \
         `pip install {}` for the python3 in PATH, or name its folder in SWALLOW_CUDA_LIBS; without NVRTC, build a \
         pack elsewhere (`swallow-engine kernels build`) and name its folder in SWALLOW_KERNELS",
        listed(.tried), wheel(*.driver)
    )]
    NoCompiler {
        /// The libraries that were found, and why each is unsuitable.
        tried: Vec<String>,
        /// The major CUDA version of the driver, if there is one.
        driver: Option<u32>,
    },
    #[error("{arch}: NVRTC {version} ({}) does not support this architecture; install a newer one", .path.display())]
    UnknownArch { arch: Arch, version: Version, path: PathBuf },
    #[error("NVRTC {version} cannot compile {file} for {arch}, which is a bug of this program:\n{log}")]
    Compile { file: &'static str, arch: Arch, version: Version, log: String },
    #[error(
        "{}: this pack was built from other kernels (sources {}) than those of this program ({}): build it anew with \
         `swallow-engine kernels build`", .path.display(), short(.pack), short(.program)
    )]
    StalePack { path: PathBuf, pack: String, program: String },
    #[error("{}: {what}; build it anew with `swallow-engine kernels build`", .path.display())]
    BadPack { path: PathBuf, what: String },
    #[error(
        "{}: this pack was built by NVRTC {version}, but the driver of this machine supports CUDA {driver}: install a \
         newer driver, or build the pack with NVRTC {driver} (--nvrtc)", .path.display()
    )]
    NewPack { path: PathBuf, version: Version, driver: u32 },
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

pub type Result<T> = std::result::Result<T, Error>;

/// A CUDA version. A driver loads cubins of its own major version and of older ones.
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

/// A hash of all kernel texts and options, which must match a pack's.
pub fn sources() -> String {
    let mut hash = hasher();
    FILES.iter().for_each(|file| feed(&mut hash, &[file.name, file.text]));
    hash.finalize().to_hex().to_string()
}

/// A hash of everything that a cubin depends on.
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

/// Hashes each text with its length, so that no text can run into the next.
fn feed(hash: &mut blake3::Hasher, texts: &[&str]) {
    for text in texts {
        hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
}

/// The wheel that fits the driver.
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
    fn a_key_depends_on_everything_that_a_cubin_does() {
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
    fn versions_are_parsed() {
        assert_eq!("12.9".parse(), Ok(Version { major: 12, minor: 9 }));
        for wrong in ["", "12", "a.b", "12."] {
            assert!(wrong.parse::<Version>().is_err());
        }
    }

    #[test]
    fn the_wheel_to_install_fits_the_driver() {
        let said = |driver| Error::NoCompiler { tried: vec!["x".into()], driver }.to_string();
        assert!(said(Some(12)).contains("nvidia-cuda-nvrtc-cu12") && said(Some(12)).contains("(x)"));
        assert!(said(Some(13)).contains("`pip install nvidia-cuda-nvrtc`"));
    }
}
