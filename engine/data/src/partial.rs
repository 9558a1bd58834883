//! Files that appear whole under their name or not at all, also where two processes write the same one.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use engine::error::{Error, Result};

/// A file that is written as `PATH.partial` and gets its name at the end. Until then it is locked against other
/// writers, and dropping it removes it.
pub struct PartialFile {
    file: File,
    path: PathBuf,
    partial: PathBuf,
    renamed: bool,
}

impl PartialFile {
    /// Creates the file, and its folder where that is missing. Refused where another process writes it.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = folder_of(path);
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        let partial = with_suffix(path, "partial");
        let file = loop {
            let file = File::options().create(true).truncate(false).write(true).open(&partial);
            let file = file.map_err(|e| Error::io(&partial, e))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Err(in_use(path)),
                // Some network file systems have no locks.
                Err(TryLockError::Error(_)) | Ok(()) => {}
            }
            // Between the opening and the locking the other writer may have renamed the file.
            if is_still_there(&file, &partial).map_err(|e| Error::io(&partial, e))? {
                break file;
            }
        };
        file.set_len(0).map_err(|e| Error::io(&partial, e))?;
        Ok(Self { file, path: path.to_path_buf(), partial, renamed: false })
    }

    /// Removes the bytes from `len` on.
    pub fn truncate(&mut self, len: u64) -> Result<()> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::Start(len)));
        cut.map(drop).map_err(|e| self.error(e))
    }

    /// An error of writing to this file.
    pub fn error(&self, e: io::Error) -> Error {
        Error::io(&self.partial, e)
    }

    /// Waits until the bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.error(e))
    }

    /// Gives the file its name. The folder is synced by [`sync_folder_of`].
    pub fn rename(mut self) -> Result<()> {
        fs::rename(&self.partial, &self.path).map_err(|e| Error::io(&self.path, e))?;
        self.renamed = true;
        Ok(())
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.renamed {
            fs::remove_file(&self.partial).ok();
        }
    }
}

/// Writes a small file: it appears whole or stays as it was.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut partial = PartialFile::create(path)?;
    partial.write_all(text.as_bytes()).map_err(|e| partial.error(e))?;
    partial.sync()?;
    partial.rename()?;
    sync_folder_of(path)
}

/// Writes files into a folder, and flushes them to the disk.
pub fn write_files<'a>(folder: &Path, files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
    for (name, bytes) in files {
        let file = folder.join(name);
        let written = File::create(&file).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        written.map_err(|e| Error::io(&file, e))?;
    }
    Ok(())
}

/// Makes the names in the folder of `path` survive a crash of the machine.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))
}

/// `PATH.suffix`: a path may have dots of its own.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_still_there(file: &File, partial: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(partial) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn in_use(path: &Path) -> Error {
    Error::user(format!(
        "{}: another process is writing this file; wait for it, or give this one another --output",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_and_does_no_harm() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/a.bin");
        let mut first = PartialFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        let error = PartialFile::create(&path).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("a.bin: another process is writing"), "{error}");
        first.rename().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        drop(PartialFile::create(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing half-written is left");
    }
}
