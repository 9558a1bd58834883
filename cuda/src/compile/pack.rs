//! A pack: a folder of cubins for machines without NVRTC, with a manifest that identifies their sources.

use super::{Error, Nvrtc, OPTIONS, Resources, Result, Version, sources, write_atomically};
use crate::arch::Arch;
use crate::kernels::{File, files_for};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";

/// The manifest of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// A hash of the kernels' texts and the compiler's options.
    pub sources: String,
    pub options: Vec<String>,
    /// The version of NVRTC.
    pub compiler: String,
    pub cubins: Vec<Entry>,
}

/// A cubin of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file of kernels.
    pub file: String,
    pub arch: String,
    /// The cubin's file name, and the hash of its bytes.
    pub cubin: String,
    pub blake3: String,
    pub kernels: Vec<Resources>,
    /// Warnings of ptxas.
    pub warnings: Vec<String>,
}

/// Compiles all files for these architectures into a folder, and calls `each` after every cubin. The manifest is
/// written last: a folder without one is not a pack.
pub fn build(nvrtc: &Nvrtc, archs: &[Arch], dir: &Path, each: impl Fn()) -> Result<Manifest> {
    std::fs::create_dir_all(dir).map_err(|error| Error::Io { path: dir.to_path_buf(), error })?;
    remove(&dir.join(MANIFEST))?;
    let mut cubins = Vec::new();
    for &arch in archs {
        for file in files_for(arch.target()) {
            cubins.push(entry(nvrtc, file, arch, dir)?);
            each();
        }
    }
    let manifest = Manifest {
        sources: sources(),
        options: OPTIONS.map(String::from).into(),
        compiler: nvrtc.version().to_string(),
        cubins,
    };
    let json = serde_json::to_string_pretty(&manifest).expect("strings and numbers are JSON");
    put(&dir.join(MANIFEST), format!("{json}\n").as_bytes())?;
    Ok(manifest)
}

fn entry(nvrtc: &Nvrtc, file: &File, arch: Arch, dir: &Path) -> Result<Entry> {
    let compiled = nvrtc.compile(file, arch)?;
    let cubin = format!("{}-{arch}.cubin", file.name.trim_end_matches(".cu"));
    put(&dir.join(&cubin), &compiled.cubin)?;
    Ok(Entry {
        file: file.name.into(),
        arch: arch.to_string(),
        cubin,
        blake3: blake3::hash(&compiled.cubin).to_hex().to_string(),
        kernels: compiled.kernels,
        warnings: compiled.warnings,
    })
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, &[bytes]).map_err(|error| Error::Io { path: path.to_path_buf(), error })
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.to_path_buf(), error })
        }
        _ => Ok(()),
    }
}

/// A pack built from this program's kernels.
pub struct Pack {
    dir: PathBuf,
    version: Version,
    manifest: Manifest,
}

impl Pack {
    /// None if the folder has no manifest.
    pub fn open(dir: &Path) -> Result<Option<Pack>> {
        let path = dir.join(MANIFEST);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::Io { path, error }),
        };
        let bad = |what: String| Error::BadPack { path: path.clone(), what };
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        let program = sources();
        if manifest.sources != program {
            return Err(Error::StalePack { path: dir.to_path_buf(), pack: manifest.sources, program });
        }
        let wrong = |_| bad(format!("compiler = {:?} is not a version such as \"12.9\"", manifest.compiler));
        let version = manifest.compiler.parse().map_err(wrong)?;
        Ok(Some(Pack { dir: dir.to_path_buf(), version, manifest }))
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The best architecture that a device of `arch` runs and for which the pack is complete.
    pub fn serves(&self, arch: Arch) -> Option<Arch> {
        arch.runs().find(|&arch| files_for(arch.target()).all(|file| self.entry(file, arch).is_some()))
    }

    fn entry(&self, file: &File, arch: Arch) -> Option<&Entry> {
        self.manifest.cubins.iter().find(|entry| entry.file == file.name && entry.arch == arch.to_string())
    }

    /// The architectures in it, for messages.
    pub fn archs(&self) -> String {
        let mut archs: Vec<&str> = self.manifest.cubins.iter().map(|entry| entry.arch.as_str()).collect();
        archs.dedup();
        archs.join(", ")
    }

    /// The cubin of a file for an architecture in the pack.
    pub fn cubin(&self, file: &File, arch: Arch) -> Result<Vec<u8>> {
        let bad = |what: &str| Error::BadPack { path: self.dir.clone(), what: what.into() };
        let entry = self.entry(file, arch).ok_or_else(|| bad(&format!("it has no {} for {arch}", file.name)))?;
        let bytes =
            std::fs::read(self.dir.join(&entry.cubin)).map_err(|error| bad(&format!("{}: {error}", entry.cubin)))?;
        if blake3::hash(&bytes).to_hex().as_str() != entry.blake3 {
            return Err(bad(&format!("the checksum of {} is wrong", entry.cubin)));
        }
        Ok(bytes)
    }
}
