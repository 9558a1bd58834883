//! The cache of compiled cubins: one file each, named by a hash of everything that it depends on. Processes that start
//! together compile a file once. A file is complete or absent; one that was damaged later is compiled again.

use super::Result;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of the checksum at the end of a file.
const SUM: usize = blake3::OUT_LEN;

/// A folder of cubins.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Opens the first of these folders that is writable and owned by this user; the notes say why others are not used.
    pub fn open(dirs: &[PathBuf]) -> (Option<Cache>, Vec<String>) {
        let mut notes = Vec::new();
        for dir in dirs {
            match usable(dir) {
                Ok(()) => return (Some(Cache { dir: dir.clone() }), notes),
                Err(why) => notes.push(format!("{}: kernels are not cached here: {why}", dir.display())),
            }
        }
        (None, notes)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cubin of this key, compiled by `make` if neither the cache has it nor another process is compiling it. If it
    /// cannot be stored, which must not stop a run, a note says why.
    pub fn get(
        &self,
        key: blake3::Hash,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>>,
    ) -> Result<(Vec<u8>, Option<String>)> {
        let path = self.dir.join(format!("{}-{name}.cubin", &key.to_hex()[..16]));
        if let Some(cubin) = read(&path, key) {
            return Ok((cubin, None));
        }
        // On a file system without locks every process compiles for itself, with the same result.
        let lock = lock_file(&self.dir).and_then(|file| file.lock().map(|()| file));
        if lock.is_ok()
            && let Some(cubin) = read(&path, key)
        {
            return Ok((cubin, None));
        }
        let cubin = make()?;
        let kept = write_atomically(&path, &[&cubin, sum(key, &cubin).as_bytes()]);
        let note = kept.err().map(|e| format!("{}: {e}", path.display()));
        Ok((cubin, note))
    }
}

/// Other users must not be able to write kernels into the folder, nor to redirect it by a link.
fn usable(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let (link, about, me) = (dir.symlink_metadata()?, dir.metadata()?, std::fs::metadata("/proc/self")?.uid());
    if link.uid() != me || about.uid() != me || about.mode() & 0o022 != 0 {
        return Err(std::io::Error::other("it is writable by other users"));
    }
    lock_file(dir).map(|_| ())
}

fn lock_file(dir: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(dir.join("lock"))
}

fn sum(key: blake3::Hash, cubin: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(key.as_bytes()).update(cubin).finalize()
}

/// None if there is no such file or its checksum is wrong.
fn read(path: &Path, key: blake3::Hash) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let cubin = bytes.len().checked_sub(SUM)?;
    let whole = sum(key, &bytes[..cubin]).as_bytes()[..] == bytes[cubin..];
    bytes.truncate(cubin);
    whole.then_some(bytes)
}

/// Writes a file completely or not at all, by way of a temporary name of this process.
pub(crate) fn write_atomically(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = || {
        let mut file = File::create(&temporary)?;
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    written().inspect_err(|_| _ = std::fs::remove_file(&temporary))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Error, Version};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn key(of: &str) -> blake3::Hash {
        blake3::hash(of.as_bytes())
    }

    fn opened(dir: &Path) -> Cache {
        Cache::open(&[dir.to_path_buf()]).0.unwrap()
    }

    /// The cache's cubin, and whether it was compiled now.
    fn got(cache: &Cache, of: &str) -> (Vec<u8>, bool) {
        let mut made = false;
        let make = || {
            made = true;
            Ok(format!("cubin of {of}").into_bytes())
        };
        let (cubin, note) = cache.get(key(of), "a", make).unwrap();
        assert_eq!((cubin.as_slice(), note), (format!("cubin of {of}").as_bytes(), None));
        (cubin, made)
    }

    #[test]
    fn a_cubin_is_compiled_once() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = opened(&tmp.path().join("deep/er"));
        for (of, made) in [("x", true), ("x", false), ("y", true), ("x", false)] {
            assert_eq!(got(&cache, of).1, made, "{of}");
        }
        assert_eq!(std::fs::read_dir(cache.dir()).unwrap().count(), 3, "two cubins and the lock");
    }

    /// Truncation at any byte, a flipped bit anywhere, another key's bytes: each must lead to a new compilation.
    #[test]
    fn damage_is_detected() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = opened(tmp.path());
        got(&cache, "other");
        let other = std::fs::read(path(&cache, "other")).unwrap();
        got(&cache, "x");
        let whole = std::fs::read(path(&cache, "x")).unwrap();
        let mut wrong = Vec::from_iter((0..whole.len()).map(|n| whole[..n].to_vec()));
        wrong.extend((0..whole.len()).map(|at| {
            let mut turned = whole.clone();
            turned[at] ^= 4;
            turned
        }));
        wrong.push(other);
        wrong.push([&whole[..], b"more"].concat());
        for bytes in wrong {
            std::fs::write(path(&cache, "x"), &bytes).unwrap();
            assert!(got(&cache, "x").1, "{bytes:?} was taken");
            assert_eq!(std::fs::read(path(&cache, "x")).unwrap(), whole);
        }
    }

    fn path(cache: &Cache, of: &str) -> PathBuf {
        cache.dir().join(format!("{}-a.cubin", &key(of).to_hex()[..16]))
    }

    #[test]
    fn of_concurrent_processes_one_compiles() {
        let tmp = tempfile::tempdir().unwrap();
        let (made, start) = (AtomicUsize::new(0), Barrier::new(8));
        let one = || {
            let cache = opened(tmp.path());
            start.wait();
            let slowly = || {
                made.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
                Ok(b"cubin".to_vec())
            };
            assert_eq!(cache.get(key("x"), "a", slowly).unwrap(), (b"cubin".to_vec(), None));
        };
        std::thread::scope(|scope| (0..8).for_each(|_| _ = scope.spawn(one)));
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_failed_compilation_leaves_no_file() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = opened(tmp.path());
        let arch = crate::arch::KNOWN[0];
        let version = Version { major: 12, minor: 9 };
        let fail = || Err(Error::Compile { file: "a.cu", arch, version, log: String::new() });
        assert!(cache.get(key("x"), "a", fail).is_err());
        assert!(got(&cache, "x").1);
    }

    #[test]
    fn folders_that_are_not_writable_or_writable_by_others_are_skipped() {
        let tmp = tempfile::tempdir().unwrap();
        let (file, open, good) = (tmp.path().join("file"), tmp.path().join("open"), tmp.path().join("good"));
        std::fs::write(&file, "").unwrap();
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        let (cache, notes) = Cache::open(&[file.join("sub"), open.clone(), good.clone()]);
        assert_eq!(cache.unwrap().dir(), good);
        assert!(notes.len() == 2 && notes[0].contains("file/sub") && notes[1].contains("other users"), "{notes:?}");
        let (cache, notes) = Cache::open(&[open]);
        assert!(cache.is_none() && notes.len() == 1);
    }
}
