//! A case: the files that a target reads, by their paths in the folder in which it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

/// The files by their paths, so that a case has one order whatever the file system's is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Case(pub BTreeMap<PathBuf, Vec<u8>>);

impl Case {
    /// Reads all files below a folder.
    pub fn read(folder: &Path) -> Result<Case> {
        let mut case = Case::default();
        case.add(folder, Path::new(""))?;
        Ok(case)
    }

    fn add(&mut self, folder: &Path, below: &Path) -> Result<()> {
        for entry in fs::read_dir(folder.join(below))? {
            let path = below.join(entry?.file_name());
            match folder.join(&path).is_dir() {
                true => self.add(folder, &path)?,
                false => _ = self.0.insert(path.clone(), fs::read(folder.join(&path))?),
            }
        }
        Ok(())
    }

    /// Writes the files into a folder, which is emptied first.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match path.is_dir() && !path.is_symlink() {
                true => fs::remove_dir_all(path)?,
                false => fs::remove_file(path)?,
            }
        }
        for (path, bytes) in &self.0 {
            fs::create_dir_all(folder.join(path).parent().expect("a path below the folder"))?;
            fs::write(folder.join(path), bytes)?;
        }
        Ok(())
    }

    /// Names a case that was found.
    pub fn hash(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for (path, bytes) in &self.0 {
            hash.update(path.as_os_str().as_encoded_bytes()).update(&[0]);
            hash.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        hash.finalize().to_hex()[..12].to_string()
    }
}

/// The committed seeds of a target, each a folder, in the order of their names.
pub fn seeds(target: &str) -> Result<Vec<Case>> {
    let folder = root().join("seeds").join(target);
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(|path| Case::read(path)).collect()
}

/// The folder of this crate.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
