//! What a disk holds after the power was lost: the bytes of a file as of its last `fsync`. The names in a directory are
//! those of the directory's last `fsync`, under the strictest reading of POSIX, or those of the last moment, as on file
//! systems that write names before bytes. The shim keeps a [`Shadow`] of what was flushed.

#[path = "../shim/src/shadow.rs"]
mod shadow;

pub use shadow::Shadow;
use shadow::key;
use std::fs;
use std::io::Result;
use std::path::Path;

/// Everything below `path` was on the disk from the beginning.
pub fn keep_all(shadow: &Shadow, path: &Path) -> Result<()> {
    shadow.keep(path)?;
    if path.is_dir() {
        fs::read_dir(path)?.try_for_each(|entry| keep_all(shadow, &entry?.path()))?;
    }
    Ok(())
}

/// Writes to `to` what is left of the directory `path` where directories have the names that were flushed.
pub fn restore(shadow: &Shadow, path: &Path, to: &Path) -> Result<()> {
    restore_key(shadow, &key(&fs::metadata(path)?)?, to)
}

fn restore_key(shadow: &Shadow, key: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for line in String::from_utf8_lossy(&flushed(shadow, key)).lines() {
        let [kind, key, name] = line.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("not a line: {line}") };
        match kind {
            "d" => restore_key(shadow, key, &to.join(name))?,
            _ => fs::write(to.join(name), flushed(shadow, key))?,
        }
    }
    Ok(())
}

/// Writes to `to` what is left of `path` where directories have the names of the last moment.
pub fn restore_with_names(shadow: &Shadow, path: &Path, to: &Path) -> Result<()> {
    if !path.is_dir() {
        return fs::write(to, flushed(shadow, &key(&fs::metadata(path)?)?));
    }
    fs::create_dir_all(to)?;
    fs::read_dir(path)?.flatten().try_for_each(|e| restore_with_names(shadow, &e.path(), &to.join(e.file_name())))
}

/// What was never flushed is empty.
fn flushed(shadow: &Shadow, key: &str) -> Vec<u8> {
    fs::read(shadow.0.join(key)).unwrap_or_default()
}
