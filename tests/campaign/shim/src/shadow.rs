//! A folder that has the bytes of each flushed file, and the names of each flushed directory, under the key of their
//! inode. The shim writes it, and the campaign makes from it what is left after the power was lost.

use std::fs::{self, Metadata};
use std::io::{Result, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

pub struct Shadow(pub PathBuf);

/// Inode numbers are used again, so the key has the time at which the inode was made.
pub fn key(data: &Metadata) -> Result<String> {
    let born = data.created()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{}-{}", data.ino(), born.as_nanos()))
}

impl Shadow {
    /// The file or directory at `path` was flushed.
    pub fn keep(&self, path: &Path) -> Result<()> {
        let data = fs::metadata(path)?;
        let bytes = if data.is_dir() { list(path)? } else { fs::read(path)? };
        // Threads and ranks may flush the same file at the same time, and may be killed here.
        let unfinished = self.0.join(format!(".{:?}.{}", std::thread::current().id(), std::process::id()));
        fs::File::create(&unfinished)?.write_all(&bytes)?;
        fs::rename(unfinished, self.0.join(key(&data)?))
    }
}

/// A line for each name in a directory: whether it is one of a directory, its key, itself.
fn list(dir: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A name that was removed since then is none.
        let Ok(data) = entry.metadata() else { continue };
        let kind = if data.is_dir() { "d" } else { "f" };
        writeln!(text, "{kind} {} {}", key(&data)?, entry.file_name().to_string_lossy())?;
    }
    Ok(text)
}
