//! The token files must stay as they are while a run reads them. [`Feed::unchanged`] is asked before each checkpoint is
//! saved, so that no checkpoint holds steps that were trained on other tokens than the run began with.
//!
//! Sizes, times and inodes are compared first, which reads nothing. Where only the time or the inode differs, as after
//! a `touch` or a file that was copied back, a sample of the content decides. A write into the middle of a long file
//! that leaves its size as it was, and hits no block of the sample, is not seen.

use std::path::PathBuf;
use std::sync::Mutex;

use rayon::prelude::*;

use super::data_file::{DataFile, Stamp, changed};
use super::feed::Feed;
use engine::error::Result;

/// A file as it was when the run began.
pub(super) struct Watched {
    path: PathBuf,
    /// The last stamp under which the content was the same.
    stamp: Mutex<Stamp>,
    sample: blake3::Hash,
}

impl Watched {
    pub fn new(file: &DataFile) -> Result<Self> {
        Ok(Self { path: file.path().into(), stamp: Mutex::new(file.stamp()), sample: file.sample()? })
    }

    /// An error where the file that has the name now has another size or content.
    fn check(&self) -> Result<()> {
        let now = Stamp::at(&self.path)?;
        let mut known = self.stamp.lock().expect("no check panicked");
        if now == *known {
            return Ok(());
        }
        if now.bytes != known.bytes {
            let what = format!("it had {} bytes when the run began and has {} now", known.bytes, now.bytes);
            return Err(changed(&self.path, &what));
        }
        let file = DataFile::open(&self.path)?;
        if file.sample()? != self.sample {
            return Err(changed(&self.path, "its content has changed since the run began, its size has not"));
        }
        *known = now;
        Ok(())
    }
}

impl Feed {
    /// An error that names the first file that is no longer what the run began with.
    pub fn unchanged(&self) -> Result<()> {
        self.watched.par_iter().map(Watched::check).collect::<Vec<_>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    #[test]
    fn only_another_content_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.bin");
        let bytes: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let opened = DataFile::open(&path).unwrap();
        let watched = Watched::new(&opened).unwrap();
        let refused = || watched.check().unwrap_err().to_string();
        let file = File::options().write(true).open(&path).unwrap();
        let mut ages = 1..;
        let mut touch = |file: &File| {
            let age = Duration::from_secs(3600 * ages.next().unwrap());
            file.set_modified(SystemTime::now() - age).unwrap();
        };
        watched.check().unwrap();
        touch(&file);
        watched.check().unwrap();
        // A block of the sample, at the end and in the middle, and back again.
        for at in [(8 << 20) - 1, ((8 << 20) - (64 << 10)) * 7 / 15] {
            file.write_all_at(&[!bytes[at]], at as u64).unwrap();
            touch(&file);
            assert!(refused().contains("tokens.bin: its content has changed"), "{}", refused());
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
            touch(&file);
            watched.check().unwrap();
        }
        // A copy under the same name.
        fs::write(folder.path().join("copy"), &bytes).unwrap();
        fs::rename(folder.path().join("copy"), &path).unwrap();
        watched.check().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5 << 20).unwrap();
        assert!(refused().contains("had 8388608 bytes when the run began and has 5242880 now"), "{}", refused());
        assert_eq!(watched.check().unwrap_err().exit_code(), 2);
        fs::remove_file(&path).unwrap();
        assert!(refused().contains("tokens.bin: it does not exist"), "{}", refused());
        // A file that is open can still be read; one that was cut gives an error.
        assert_eq!(opened.range(0..4).unwrap(), bytes[..4]);
        file.set_len(2).unwrap();
        let error = opened.range(0..4).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("tokens.bin: it has become shorter"), "{error}");
    }
}
