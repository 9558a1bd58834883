//! The sources of the kernels of a process: a pack, else from this machine's cache, else from the compiler.

use super::{Cache, Error, Nvrtc, Pack, Result, Version, key};
use crate::arch::Arch;
use crate::kernels::{File, files_for};
use crate::search::Search;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The places for packs, caches and compilers on a machine.
#[derive(Debug, Clone)]
pub struct Places {
    /// The user's pack, which must exist.
    named: Option<PathBuf>,
    /// Folders that may hold a pack.
    beside: Vec<PathBuf>,
    /// Folders for the cache, of which the first usable one is taken.
    caches: Vec<PathBuf>,
    search: Search,
}

/// The cubins of one architecture.
pub struct Kernels {
    pub arch: Arch,
    /// One per file, in the order of the table.
    pub cubins: Vec<Cubin>,
    /// Their source, for messages.
    pub origin: String,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// The compiled kernels of a file.
pub struct Cubin {
    pub kernels: &'static [&'static str],
    pub image: Vec<u8>,
}

impl Places {
    /// The places named by environment variables (those of `Search::of`, and SWALLOW_KERNELS, XDG_CACHE_HOME, HOME,
    /// TMPDIR) and by the path of the program.
    pub fn of(var: impl Fn(&str) -> Option<OsString>, program: Option<&Path>) -> Places {
        let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let bin = program.and_then(Path::parent);
        let beside =
            bin.map_or(Vec::new(), |bin| vec![bin.join("kernels"), bin.join("../share/swallow-engine/kernels")]);
        let home = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        let me = std::fs::metadata("/proc/self").map_or(0, |about| about.uid());
        // A folder directly in TMPDIR: its owner is checked, and no other user can replace it.
        let tmp = set("TMPDIR").unwrap_or("/tmp".into()).join(format!("swallow-engine-kernels-{me}"));
        let caches = home.map(|home| home.join("swallow-engine/kernels")).into_iter().chain([tmp]).collect();
        Places { named: set("SWALLOW_KERNELS"), beside, caches, search: Search::of(var) }
    }

    /// The search for NVIDIA's libraries.
    pub fn search(&self) -> &Search {
        &self.search
    }

    /// This machine's cache folder, and notes about unusable ones.
    pub fn cache(&self) -> (Option<PathBuf>, Vec<String>) {
        let (cache, notes) = Cache::open(&self.caches);
        (cache.map(|cache| cache.dir().to_path_buf()), notes)
    }

    /// The cubins for devices of `arch`. `driver` is the major CUDA version of this machine's driver.
    pub fn kernels(&self, arch: Arch, driver: Option<u32>) -> Result<Kernels> {
        if let Some(pack) = self.pack()? {
            if let Some(major) = driver.filter(|&major| pack.version().major > major) {
                return Err(Error::NewPack { path: pack.dir().into(), version: pack.version(), driver: major });
            }
            if let Some(arch) = pack.serves(arch) {
                return from_pack(&pack, arch);
            }
            if self.named.is_some() {
                let what = format!("it has kernels for {}, none of which {arch} runs", pack.archs());
                return Err(Error::BadPack { path: pack.dir().into(), what });
            }
        }
        self.compiled(arch, &Nvrtc::find(&self.search, driver)?)
    }

    fn pack(&self) -> Result<Option<Pack>> {
        if let Some(dir) = &self.named {
            let none = || Error::BadPack {
                path: dir.clone(),
                what: "SWALLOW_KERNELS names this folder, but it is no pack".into(),
            };
            return Pack::open(dir)?.ok_or_else(none).map(Some);
        }
        for dir in &self.beside {
            if let Some(pack) = Pack::open(dir)? {
                return Ok(Some(pack));
            }
        }
        Ok(None)
    }

    fn compiled(&self, arch: Arch, nvrtc: &Nvrtc) -> Result<Kernels> {
        let (cache, mut notes) = Cache::open(&self.caches);
        let mut cubins = Vec::new();
        for file in files_for(arch.target()) {
            let mut complaints = Vec::new();
            let mut make = || {
                let compiled = nvrtc.compile(file, arch)?;
                complaints = compiled.complaints();
                Ok(compiled.cubin)
            };
            let image = match &cache {
                None => make()?,
                Some(cache) => {
                    let name = format!("{}-{arch}", file.name.trim_end_matches(".cu"));
                    let (image, note) = cache.get(key(file, arch, nvrtc.version()), &name, make)?;
                    notes.extend(note);
                    image
                }
            };
            notes.extend(slow(file, nvrtc.version(), &complaints));
            cubins.push(Cubin { kernels: file.kernels, image });
        }
        let kept = cache.map_or(String::new(), |cache| format!(", cached in {}", cache.dir().display()));
        let origin = format!("NVRTC {} ({}){kept}", nvrtc.version(), nvrtc.path().display());
        Ok(Kernels { arch, cubins, origin, notes })
    }
}

/// A note for kernels that a compiler made slow. Their results are right.
fn slow(file: &File, version: Version, complaints: &[String]) -> Option<String> {
    let first = complaints.first()?;
    let more = if complaints.len() > 1 { format!(" (and {} more)", complaints.len() - 1) } else { String::new() };
    let remedy = match (version.major, version.minor) < (12, 9) {
        true => "; use NVRTC 12.9 (pip install nvidia-cuda-nvrtc-cu12==12.9.*)",
        false => "",
    };
    Some(format!("{}: NVRTC {version} makes slow kernels: {first}{more}{remedy}", file.name))
}

fn from_pack(pack: &Pack, arch: Arch) -> Result<Kernels> {
    let cubin = |file: &File| Ok(Cubin { kernels: file.kernels, image: pack.cubin(file, arch)? });
    let cubins = files_for(arch.target()).map(cubin).collect::<Result<_>>()?;
    let origin = format!("the pack {} (NVRTC {})", pack.dir().display(), pack.version());
    Ok(Kernels { arch, cubins, origin, notes: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::FILES;

    #[test]
    fn slow_kernels_are_reported_once_with_a_better_compiler() {
        let said = |minor, complaints: &[&str]| {
            let complaints: Vec<String> = complaints.iter().map(|text| text.to_string()).collect();
            slow(&FILES[0], Version { major: 12, minor }, &complaints)
        };
        assert_eq!(said(4, &[]), None);
        let note = said(4, &["C7510: wgmma is serialized", "8 bytes spill stores"]).unwrap();
        let wanted = "NVRTC 12.4 makes slow kernels: C7510: wgmma is serialized (and 1 more); use NVRTC 12.9";
        assert!(note.starts_with(&format!("{}: {wanted}", FILES[0].name)), "{note}");
        // There is no better one to name.
        assert!(!said(9, &["C7510"]).unwrap().contains("pip install"));
    }
}
