//! Where a process gets its kernels from: a pack first, then what this machine compiled before, then the compiler.

use super::{Cache, Error, Nvrtc, Pack, Result, key};
use crate::arch::Arch;
use crate::kernels::{File, files_for};
use crate::search::Search;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Packs, caches and compilers of a machine.
#[derive(Debug, Clone)]
pub struct Places {
    /// The pack that the user names; it must be one.
    named: Option<PathBuf>,
    /// Where a pack may lie.
    beside: Vec<PathBuf>,
    /// Folders to keep cubins in, the first that will do.
    caches: Vec<PathBuf>,
    search: Search,
}

/// The cubins of one architecture.
pub struct Kernels {
    pub arch: Arch,
    /// One a file, in the order of the table.
    pub cubins: Vec<Cubin>,
    /// Whence they came, for people.
    pub origin: String,
    /// What a user may want to know, and nothing failed of.
    pub notes: Vec<String>,
}

/// The kernels of a file, as a device loads them.
pub struct Cubin {
    pub kernels: &'static [&'static str],
    pub image: Vec<u8>,
}

impl Places {
    /// By what an environment says (`Search::of`, and SWALLOW_KERNELS, XDG_CACHE_HOME, HOME, TMPDIR), for a program
    /// that lies at `program`.
    pub fn of(var: impl Fn(&str) -> Option<OsString>, program: Option<&Path>) -> Places {
        let set = |name| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let bin = program.and_then(Path::parent);
        let beside =
            bin.map_or(Vec::new(), |bin| vec![bin.join("kernels"), bin.join("../share/swallow-engine/kernels")]);
        let home = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        let me = std::fs::metadata("/proc/self").map_or(0, |about| about.uid());
        // One folder, not one inside another: its owner is looked at, and nobody else can move it.
        let tmp = set("TMPDIR").unwrap_or("/tmp".into()).join(format!("swallow-engine-kernels-{me}"));
        let caches = home.map(|home| home.join("swallow-engine/kernels")).into_iter().chain([tmp]).collect();
        Places { named: set("SWALLOW_KERNELS"), beside, caches, search: Search::of(var) }
    }

    /// Where NVIDIA's libraries are looked for.
    pub fn search(&self) -> &Search {
        &self.search
    }

    /// The folder that this machine keeps in what it has found out, and what there is to tell of others before it.
    pub fn cache(&self) -> (Option<PathBuf>, Vec<String>) {
        let (cache, notes) = Cache::open(&self.caches);
        (cache.map(|cache| cache.dir().to_path_buf()), notes)
    }

    /// The cubins for devices of `arch`; `driver` is the CUDA version that the driver of this machine is made for.
    pub fn kernels(&self, arch: Arch, driver: Option<u32>) -> Result<Kernels> {
        if let Some(pack) = self.pack()? {
            if let Some(major) = driver.filter(|&major| pack.version().major > major) {
                return Err(Error::NewPack { path: pack.dir().into(), version: pack.version(), driver: major });
            }
            if let Some(arch) = pack.serves(arch) {
                return from_pack(&pack, arch);
            }
            if self.named.is_some() {
                let what = format!("it has kernels for {}, and none that {arch} runs", pack.archs());
                return Err(Error::BadPack { path: pack.dir().into(), what });
            }
        }
        self.compiled(arch, &Nvrtc::find(&self.search, driver)?)
    }

    fn pack(&self) -> Result<Option<Pack>> {
        if let Some(dir) = &self.named {
            let none =
                || Error::BadPack { path: dir.clone(), what: "SWALLOW_KERNELS names it, and it is no pack".into() };
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
            let make = || nvrtc.compile(file, arch).map(|compiled| compiled.cubin);
            let image = match &cache {
                None => make()?,
                Some(cache) => {
                    let name = format!("{}-{arch}", file.name.trim_end_matches(".cu"));
                    let (image, note) = cache.get(key(file, arch, nvrtc.version()), &name, make)?;
                    notes.extend(note);
                    image
                }
            };
            cubins.push(Cubin { kernels: file.kernels, image });
        }
        let kept = cache.map_or(String::new(), |cache| format!(", kept in {}", cache.dir().display()));
        let origin = format!("NVRTC {} ({}){kept}", nvrtc.version(), nvrtc.path().display());
        Ok(Kernels { arch, cubins, origin, notes })
    }
}

fn from_pack(pack: &Pack, arch: Arch) -> Result<Kernels> {
    let cubin = |file: &File| Ok(Cubin { kernels: file.kernels, image: pack.cubin(file, arch)? });
    let cubins = files_for(arch.target()).map(cubin).collect::<Result<_>>()?;
    let origin = format!("the pack {} (NVRTC {})", pack.dir().display(), pack.version());
    Ok(Kernels { arch, cubins, origin, notes: Vec::new() })
}
