//! The keys of a task file: typed reading, with messages that name file, key, value and remedy.

use std::fmt::Display;
use std::path::Path;

use engine::error::{Error, Result};
use toml::{Table, Value};

use crate::names::{Named, by_name, instead, shorten};
use crate::utf8;

/// The table of a task file whose keys are all known.
pub struct Keys<'a> {
    file: &'a Path,
    table: &'a Table,
}

/// Reads `file` as TOML.
pub fn parse(file: &Path) -> Result<Table> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    let name = file.display().to_string();
    let text = utf8::text(&name, &bytes)?;
    text.parse::<Table>().map_err(|e| {
        let line = utf8::line_at(&bytes, e.span().map_or(0, |span| span.start));
        Error::user(format!("{name}: line {line}: {}; correct the TOML", e.message().replace('\n', ", ")))
    })
}

impl<'a> Keys<'a> {
    /// Keys of `table` other than `known` are refused.
    pub fn open(file: &'a Path, table: &'a Table, known: &[&str]) -> Result<Self> {
        let keys = Keys { file, table };
        match table.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => {
                let (name, near) = (file.display(), instead(key, known));
                Err(Error::user(format!("{name}: a task has no key {:?}; {near}", shorten(key))))
            }
            None => Ok(keys),
        }
    }

    /// The error that refuses the value at `key`; `remedy` says what would be right.
    pub fn bad(&self, key: &str, remedy: impl Display) -> Error {
        let value = self.table.get(key).map(Value::to_string).unwrap_or_default();
        self.bad_at(key, value, remedy)
    }

    /// [`Keys::bad`] for a value inside the one at a key.
    pub fn bad_at(&self, key: &str, value: impl Display, remedy: impl Display) -> Error {
        Error::user(format!("{}: {key} = {}: {remedy}", self.file.display(), shorten(&value.to_string())))
    }

    /// The error that refuses a task without `key`.
    pub fn missing(&self, key: &str, example: impl Display) -> Error {
        Error::user(format!("{}: {key} is missing: write {example}", self.file.display()))
    }

    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.table.get(key)
    }

    /// Refuses `key` where it has no use; `why` says where it has, and what to do.
    pub fn refuse(&self, key: &str, why: impl Display) -> Result<()> {
        self.value(key).map_or(Ok(()), |_| Err(self.bad(key, why)))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.bad(key, "must be a text in quotes"));
        self.value(key).map(text).transpose()
    }

    pub fn required_text(&self, key: &str, example: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| self.missing(key, example))
    }

    /// The texts of an array, none of them empty.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|all| all.iter().map(|one| one.as_str().map(String::from)).collect());
        let texts: Vec<String> = texts.ok_or_else(|| self.bad(key, "must be an array of texts"))?;
        match texts.iter().position(String::is_empty) {
            Some(at) => Err(self.bad(key, format!("{key}[{at}] is empty; write a text or leave it out"))),
            None => Ok(Some(texts)),
        }
    }

    /// A number of at least 1.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let count = |value: &Value| value.as_integer().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        let read = |value| count(value).ok_or_else(|| self.bad(key, "must be a whole number of at least 1"));
        self.value(key).map(read).transpose()
    }

    /// A value that has a name.
    pub fn named<T: Named>(&self, key: &str) -> Result<Option<T>> {
        let read = |word: &str| by_name(word).map_err(|remedy| self.bad(key, remedy));
        self.text(key)?.map(read).transpose()
    }
}
