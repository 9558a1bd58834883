//! A file of token data (`.bin`, `.idx`, `.mask.bin`), read at positions.
//!
//! Nothing is mapped into memory: where another program cuts a mapped file, the next access kills the process with
//! SIGBUS, while a read of the missing bytes is an error with the file's name. A sample takes a few reads from the page
//! cache, of a few microseconds together.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use engine::error::{Error, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The remedy for a file that another program wrote to.
const REMEDY: &str = "another program wrote to the file; restore it, or tokenize again (`swallow-engine data check \
                      PREFIX` lists what is wrong), then start the run again: it continues from the last checkpoint";

/// Bytes of each block of a sample, and the most blocks.
const SAMPLE: u64 = 64 << 10;
const SAMPLES: u64 = 16;

/// Descriptors for everything else that a process has open.
const OTHER_FILES: u64 = 512;

/// An open file, which must not change while it is read.
pub struct DataFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// Size and times of a file, which tell without reading it whether it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub bytes: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    pub inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { bytes: metadata.len(), modified, inode: metadata.ino() }
    }

    /// The state of the file that has this name now.
    pub fn at(path: &Path) -> Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::of(&metadata)).map_err(|e| Error::io(path, e))
    }
}

impl DataFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        match metadata.is_file() {
            true => Ok(Self { path: path.to_path_buf(), file, stamp: Stamp::of(&metadata) }),
            false => Err(Error::user(format!("{}: not a file", path.display()))),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length in bytes when the file was opened.
    pub fn bytes(&self) -> u64 {
        self.stamp.bytes
    }

    /// The file when it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Fills `out` with the bytes from `at` on. An error where the file has become shorter.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, at).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => changed(&self.path, "it has become shorter since it was opened"),
            _ => Error::io(&self.path, e),
        })
    }

    /// The `N` bytes from `at` on.
    pub fn array<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes).map(|()| bytes)
    }

    /// The bytes of a range, which the caller has checked to lie in the file and to fit into memory.
    pub fn range(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read(range.start, &mut bytes).map(|()| bytes)
    }

    /// A hash of blocks that are spread evenly over the file, its first and its last bytes among them. A short file is
    /// hashed whole.
    pub fn sample(&self) -> Result<blake3::Hash> {
        let (mut hasher, bytes) = (blake3::Hasher::new(), self.bytes());
        if bytes <= SAMPLES * SAMPLE {
            return Ok(hasher.update(&self.range(0..bytes)?).finalize());
        }
        for i in 0..SAMPLES {
            let at = (u128::from(bytes - SAMPLE) * u128::from(i) / u128::from(SAMPLES - 1)) as u64;
            hasher.update(&self.range(at..at + SAMPLE)?);
        }
        Ok(hasher.finalize())
    }
}

/// The error where a file was written to while a run reads it.
pub fn changed(path: &Path, what: &str) -> Error {
    Error::user(format!("{}: {what}: {REMEDY}", path.display()))
}

/// `range` in blocks of `size`, the last of which may be shorter.
pub fn blocks(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let count = (range.end - range.start).div_ceil(size);
    (0..count).map(move |i| range.start + i * size..(range.start + (i + 1) * size).min(range.end))
}

/// Lets this process open `files` files beside what it has open, as far as the system allows: a mixture of hundreds of
/// sources exceeds the usual soft limit of 1,024.
pub fn allow_open(files: u64) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let needed = (files + OTHER_FILES).min(hard);
    if soft < needed {
        // Where that is refused, opening says which file is one too many.
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).ok();
    }
}
