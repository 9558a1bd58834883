//! Files of a run's directory that need not be there, or may be of the run as it was before it went on at another layout.

use engine::error::{Error, Result};
use serde::de::DeserializeOwned;
use std::path::Path;

#[derive(Debug, Clone, PartialEq)]
pub enum Found<T> {
    Absent,
    /// It is there, and not of the run as it is now: a sentence that says why, without its dot.
    LeftOut(String),
    There(T),
}

impl<T> Found<T> {
    pub fn there(&self) -> Option<&T> {
        match self {
            Found::There(of) => Some(of),
            Found::Absent | Found::LeftOut(_) => None,
        }
    }

    pub fn left_out(&self) -> Option<&str> {
        match self {
            Found::LeftOut(why) => Some(why),
            Found::Absent | Found::There(_) => None,
        }
    }

    /// What stands in its place: why it was left out, or else what `absent` says.
    pub fn instead(&self, absent: &str) -> String {
        self.left_out().map_or(absent.into(), |why| format!("{why}."))
    }
}

/// `unfit`: why what is there is not of the run as it is now.
pub fn find<T: DeserializeOwned>(dir: &Path, name: &str, unfit: impl Fn(&T) -> Option<String>) -> Result<Found<T>> {
    let Some(of) = optional(dir, name)? else { return Ok(Found::Absent) };
    Ok(match unfit(&of) {
        Some(why) => Found::LeftOut(format!("`{name}` is left out: {why}")),
        None => Found::There(of),
    })
}

pub fn optional<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>> {
    let path = dir.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let remedy = "make it again, or take it away";
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::user(format!("{}: {e}; {remedy}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_left_out_and_there_are_three() {
        let dir = tempfile::tempdir().unwrap();
        let small = |n: &u64| (*n > 9).then(|| format!("it is {n}"));
        let find = || find(dir.path(), "n.json", small).unwrap();
        assert_eq!((find(), find().instead("No n.")), (Found::Absent, "No n.".into()));
        std::fs::write(dir.path().join("n.json"), "12").unwrap();
        assert_eq!((find().there(), find().instead("No n.")), (None, "`n.json` is left out: it is 12.".into()));
        std::fs::write(dir.path().join("n.json"), "7").unwrap();
        assert_eq!((find().there(), find().left_out()), (Some(&7), None));
    }

    #[test]
    fn what_is_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("n.json"), "{\"a\": ").unwrap();
        let error = optional::<u64>(dir.path(), "n.json").unwrap_err().to_string();
        assert!(error.contains("n.json: ") && error.ends_with("make it again, or take it away"), "{error}");
    }
}
