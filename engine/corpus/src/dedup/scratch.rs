//! Temporary files without a name: the operating system removes them when they are closed, also when the program is
//! killed.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use engine::error::{Error, Result};

/// The folder for temporary files.
pub struct Scratch {
    folder: PathBuf,
    spilled: AtomicU64,
}

impl Scratch {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), spilled: AtomicU64::new(0) }
    }

    /// Bytes written to the files so far, also to those that are closed.
    pub fn spilled(&self) -> u64 {
        self.spilled.load(Ordering::Relaxed)
    }

    /// A new, empty file.
    pub fn file(&self) -> Result<ScratchFile<'_>> {
        let file = tempfile::tempfile_in(&self.folder).map_err(|e| self.error(e))?;
        Ok(ScratchFile { file, len: 0, scratch: self })
    }

    fn error(&self, e: std::io::Error) -> Error {
        let full = matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let remedy = match full {
            true => "free some space, or name a folder on a larger disk with --scratch",
            false => "it is the folder for temporary files; --scratch names another one",
        };
        Error::io(&self.folder, e).map(|what| format!("{what}; {remedy}"))
    }
}

/// A file that grows at its end and is read anywhere.
pub struct ScratchFile<'a> {
    file: File,
    len: u64,
    scratch: &'a Scratch,
}

impl ScratchFile<'_> {
    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Writes `bytes` at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.len).map_err(|e| self.scratch.error(e))?;
        self.len += bytes.len() as u64;
        self.scratch.spilled.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Fills `bytes` with those that were written at `offset`.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|e| self.scratch.error(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_back_and_no_name_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path());
        let mut file = scratch.file().unwrap();
        file.append(b"one").unwrap();
        file.append(b"two").unwrap();
        let mut bytes = [0; 4];
        file.read(2, &mut bytes).unwrap();
        assert_eq!((&bytes, file.len(), scratch.spilled()), (b"etwo", 6, 6));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_names_the_folder_and_the_flag() {
        let scratch = Scratch::new(Path::new("some/folder"));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut file = ScratchFile { file: full, len: 0, scratch: &scratch };
        let error = file.append(b"x").unwrap_err();
        assert!(matches!(error, Error::Disk(_)), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("some/folder: ") && message.contains("--scratch"), "{message}");
        assert_eq!((file.len(), scratch.spilled()), (0, 0));
    }

    #[test]
    fn a_missing_folder_is_the_users_mistake() {
        let error = Scratch::new(Path::new("/nowhere/at/all")).file().err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--scratch names another one"), "{error}");
    }
}
