//! The origin of each value of a configuration, for messages about it: a line of the file, a flag of the command line,
//! or a field of a `config.json`.

use crate::error::Error;
use std::collections::HashMap;
use std::fmt::Display;

/// The largest number of characters of a value that a message shows.
const SHOWN: usize = 80;

#[derive(Debug, Clone)]
pub struct Origins {
    /// The file that a missing key is missing from; empty if there is no file.
    file: String,
    /// The label of each key in messages, such as `a.toml line 3: train.steps`, by the key's dotted path.
    labels: HashMap<String, String>,
    /// The text after the `=` of each flag, by the key's dotted path.
    typed: HashMap<String, String>,
}

impl Origins {
    pub fn new(file: String) -> Self {
        Origins { file, labels: HashMap::new(), typed: HashMap::new() }
    }

    /// The origins of a configuration that no file holds: messages name the keys alone.
    pub fn nowhere() -> Self {
        Origins::new(String::new())
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// Records that the value at `key` comes from `label`.
    pub fn put(&mut self, key: &str, label: String) {
        self.labels.insert(key.to_string(), label);
    }

    /// Records that the value at `key` comes from a flag that gave it as `text`.
    pub fn put_typed(&mut self, key: &str, text: &str) {
        self.put(key, format!("--set {key}"));
        self.typed.insert(key.to_string(), text.to_string());
    }

    /// The text of the value at `key` in its flag; `None` if the value comes from a file.
    pub fn typed(&self, key: &str) -> Option<&str> {
        self.typed.get(key).map(String::as_str)
    }

    /// Takes the origins of the value at `key`, and of those inside it, from `other`.
    pub fn adopt(&mut self, other: &Origins, key: &str) {
        let theirs = other.labels.iter().filter(|(k, _)| *k == key || inside(key, k));
        self.labels.extend(theirs.map(|(k, label)| (k.clone(), label.clone())));
    }

    /// Removes the origins of the values inside `key`, which were replaced.
    pub fn forget_below(&mut self, key: &str) {
        self.labels.retain(|k, _| !inside(key, k));
        self.typed.retain(|k, _| !inside(key, k));
    }

    /// The label of `key` in messages. A value without a label of its own has that of the flag that gave the value
    /// around it.
    pub fn label(&self, key: &str) -> String {
        let bare = || if self.file.is_empty() { key.to_string() } else { format!("{}: {key}", self.file) };
        let of_flag = || {
            let flag = self.typed.keys().find(|flag| inside(flag, key))?;
            Some(format!("{}{}", self.labels.get(flag)?, &key[flag.len()..]))
        };
        self.labels.get(key).cloned().or_else(of_flag).unwrap_or_else(bare)
    }

    /// The error that refuses the value at `key`; `remedy` says what would be right.
    pub fn bad(&self, key: &str, value: impl Display, remedy: impl Display) -> Error {
        Error::user(format!("{} = {}: {remedy}", self.label(key), shorten(&value.to_string())))
    }

    /// The error that refuses a configuration without `key`, which has no default.
    pub fn missing(&self, key: &str, remedy: impl Display) -> Error {
        // If two files make up a table, the key is missing in both.
        let both = |(table, rest)| Some(format!("{}.{rest}", self.labels.get(&format!("{table}/hf"))?));
        let table = key.split_once('.').and_then(both);
        Error::user(format!("{} is missing: {remedy}", table.unwrap_or_else(|| self.label(key))))
    }
}

/// Whether the value at `path` is inside the one at `key`.
fn inside(key: &str, path: &str) -> bool {
    path.strip_prefix(key).is_some_and(|rest| rest.starts_with(['.', '[']))
}

/// `text`, or its beginning if it is long.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_string(),
    }
}

/// `table.key`, or `key` if the table is the file itself.
pub fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_string() } else { format!("{table}.{key}") }
}

/// The known word that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = shorten(word);
    let likeness = |k: &str| strsim::normalized_damerau_levenshtein(&word, k);
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.5).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_nothing_far() {
        assert_eq!(nearest("stesp", &["seed", "steps"]), Some("steps"));
        assert_eq!(nearest("zzz", &["seed", "steps"]), None);
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(shorten(&"語".repeat(200)).chars().count(), SHOWN + 3);
        assert_eq!(shorten("abc"), "abc");
    }
}
