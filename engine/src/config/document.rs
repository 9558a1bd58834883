//! A TOML file with the `--set` flags applied to it: one table, and the origin of each of its values.

use super::origins::{Origins, join, shorten};
use crate::error::{Error, Result};
use std::path::Path;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

/// The largest number of parts of a key that a flag may name, such as `model.rope_scaling.factor`.
const MOST_PARTS: usize = 3;

pub struct Document {
    pub table: Table,
    pub origins: Origins,
}

impl Document {
    /// Loads the file at `path`, which must be UTF-8 TOML, overridden by each `KEY=VALUE` of `overrides`.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let mut document = Document::open(path, "--config")?;
        for flag in overrides {
            document.set(flag)?;
        }
        Ok(document)
    }

    /// Opens the file at `path`, which the command line gave with `flag`.
    pub fn open(path: &Path, flag: &str) -> Result<Self> {
        let unread = |e| Error::user(format!("{flag} {}: {e}; name a TOML file that can be read", path.display()));
        let bytes = std::fs::read(path).map_err(unread)?;
        let file = path.display().to_string();
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            Error::user(format!("{file}: byte {at} is not UTF-8; a configuration is a TOML text in UTF-8"))
        })?;
        Document::parse(file, &text)
    }

    pub fn parse(file: String, text: &str) -> Result<Self> {
        let not_toml = |e: toml::de::Error| Error::user(format!("{file}: {}", e.to_string().trim_end()));
        let spanned = DeTable::parse(text).map_err(not_toml)?;
        let table: Table = text.parse().map_err(not_toml)?;
        let mut origins = Origins::new(file.clone());
        let starts: Vec<usize> = text.match_indices('\n').map(|(i, _)| i + 1).collect();
        Places { starts: &starts, origins: &mut origins }.table(spanned.get_ref(), "");
        Ok(Document { table, origins })
    }

    /// Applies a flag such as `train.steps=5`. The value is parsed as TOML; if that fails, it is a string. If the key
    /// needs a string, the value is the text as typed in any case, so that a directory may be named `20240401` or
    /// `true`.
    pub fn set(&mut self, flag: &str) -> Result<()> {
        let wrong = |why: &str| Error::user(format!("--set {}: {why}, as in --set train.steps=5", shorten(flag)));
        let (key, text) = flag.split_once('=').ok_or_else(|| wrong("must be KEY=VALUE"))?;
        let (key, text) = (key.trim(), text.trim());
        let parts: Vec<&str> = key.split('.').collect();
        let [tables @ .., last] = &parts[..] else { unreachable!("a split has at least one part") };
        if tables.is_empty() || parts.len() > MOST_PARTS || parts.iter().any(|part| part.is_empty()) {
            return Err(wrong("the key must be TABLE.KEY"));
        }
        let (mut at, mut path) = (&mut self.table, String::new());
        for table in tables {
            path = join(&path, table);
            if !at.contains_key(*table) {
                self.origins.put(&path, format!("--set {key}"));
            }
            let inner = at.entry(*table).or_insert_with(|| Value::Table(Table::new()));
            at = inner.as_table_mut().ok_or_else(|| wrong(&format!("{table} is a value, not a table")))?;
        }
        at.insert(last.to_string(), text.parse().unwrap_or_else(|_| Value::String(text.to_string())));
        self.origins.forget_below(key);
        self.origins.put_typed(key, text);
        Ok(())
    }
}

/// Records the line of every key.
struct Places<'a> {
    /// Byte at which each line but the first starts.
    starts: &'a [usize],
    origins: &'a mut Origins,
}

impl Places<'_> {
    fn table(&mut self, table: &DeTable, path: &str) {
        for (key, value) in table {
            let path = join(path, key.get_ref());
            self.put(&path, key.span().start);
            self.value(value.get_ref(), &path);
        }
    }

    fn value(&mut self, value: &DeValue, path: &str) {
        match value {
            DeValue::Table(table) => self.table(table, path),
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    self.put(&path, item.span().start);
                    self.value(item.get_ref(), &path);
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, path: &str, byte: usize) {
        let line = self.starts.partition_point(|&start| start <= byte) + 1;
        let label = format!("{} line {line}: {path}", self.origins.file());
        self.origins.put(path, label);
    }
}
