//! The files of a run, one module each: the record, how it is written and how it is read back.
//!
//! A report may find files of the run as it was before it resumed at another layout; each record says whether it fits
//! the run as it is now.

pub mod experts;
pub mod history;
pub mod jsonl;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod plan;
pub mod ranks;
pub mod settings;
pub mod status;
pub mod tensorboard;
pub mod timeline;
pub mod trace;

use engine::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A file that a run need not have.
#[derive(Debug, Clone, PartialEq)]
pub enum Found<T> {
    Absent,
    /// The file is there but does not fit the run as it is now: a sentence that says why, without its full stop.
    Ignored(String),
    Present(T),
}

impl<T> Found<T> {
    pub fn present(&self) -> Option<&T> {
        match self {
            Found::Present(record) => Some(record),
            Found::Absent | Found::Ignored(_) => None,
        }
    }

    pub fn ignored(&self) -> Option<&str> {
        match self {
            Found::Ignored(why) => Some(why),
            Found::Absent | Found::Present(_) => None,
        }
    }

    /// The sentence that replaces what the file would have shown: why it was ignored, else `absent`.
    pub fn instead(&self, absent: &str) -> String {
        self.ignored().map_or(absent.into(), |why| format!("{why}."))
    }
}

/// Reads `dir/name`. `unfit` says why the record does not fit the run, `None` where it does.
pub fn find<T: DeserializeOwned>(dir: &Path, name: &str, unfit: impl Fn(&T) -> Option<String>) -> Result<Found<T>> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(Found::Absent);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let damaged = |e| Error::user(format!("{}: {e}; delete the file or write it again", path.display()));
    let record: T = serde_json::from_slice(&text).map_err(damaged)?;
    Ok(match unfit(&record) {
        Some(why) => Found::Ignored(format!("`{name}` is ignored: {why}")),
        None => Found::Present(record),
    })
}

/// Writes a record to `path` for people to read.
fn write_pretty(path: &Path, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(record).expect("text and numbers") + "\n";
    replace(path, text.as_bytes())
}

/// Writes a whole file in place of `path` at once, so that a reader never finds half of one, nor a full disk leaves it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|e| {
        // The failure that is reported is the write's.
        let _ = std::fs::remove_file(&partial);
        Error::io(path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_absent_ignored_or_present() {
        let dir = tempfile::tempdir().unwrap();
        let small = |n: &u64| (*n > 9).then(|| format!("it is {n}"));
        let find = || find(dir.path(), "n.json", small).unwrap();
        assert_eq!((find(), find().instead("No n.")), (Found::Absent, "No n.".into()));
        std::fs::write(dir.path().join("n.json"), "12").unwrap();
        assert_eq!((find().present(), find().instead("No n.")), (None, "`n.json` is ignored: it is 12.".into()));
        std::fs::write(dir.path().join("n.json"), "7").unwrap();
        assert_eq!((find().present(), find().ignored()), (Some(&7), None));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("n.json"), "{\"a\": ").unwrap();
        let error = find::<u64>(dir.path(), "n.json", |_| None).unwrap_err().to_string();
        assert!(error.contains("n.json: ") && error.ends_with("delete the file or write it again"), "{error}");
    }
}
