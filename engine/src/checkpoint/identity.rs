//! Compares the settings that must not change between a checkpoint and the run that continues it.

use std::collections::HashSet;
use std::fmt;

/// A key whose values differ; `None` if a side lacks the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub key: String,
    pub was: Option<String>,
    pub now: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [was, now] = [&self.was, &self.now].map(|value| value.as_deref().unwrap_or("absent"));
        write!(f, "{}: was {was}, is now {now}", self.key)
    }
}

/// The differences in the order of the keys, the saved ones first.
///
/// Sections (the part of a key before its first dot) that the checkpoint lacks are not compared: an imported
/// checkpoint has the model only, and data and training are the run's to choose.
pub fn compare(saved: &[(String, String)], now: &[(String, String)]) -> Vec<Difference> {
    let value = |list: &[(String, String)], key: &str| list.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
    let stated: HashSet<String> = saved.iter().map(|(key, _)| section(key)).collect();
    let known: HashSet<&String> = saved.iter().map(|(key, _)| key).collect();
    let added = now.iter().filter(|(key, _)| stated.contains(&section(key)) && !known.contains(key));
    saved
        .iter()
        .chain(added)
        .map(|(key, _)| Difference { key: key.clone(), was: value(saved, key), now: value(now, key) })
        .filter(|difference| difference.was != difference.now)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        entries.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn differences_name_key_and_both_values() {
        let saved = list(&[("model.hidden_size", "64"), ("data.0", "a"), ("data.1", "b")]);
        let now = list(&[("model.hidden_size", "32"), ("data.0", "a"), ("data.2", "c"), ("train.seed", "1")]);
        let text: Vec<String> = compare(&saved, &now).iter().map(Difference::to_string).collect();
        assert_eq!(
            text,
            ["model.hidden_size: was 64, is now 32", "data.1: was b, is now absent", "data.2: was absent, is now c"]
        );
        assert_eq!(compare(&saved, &saved), []);
    }

    #[test]
    fn an_imported_checkpoint_binds_the_model_alone() {
        let saved = list(&[("model.hidden_size", "64")]);
        let now = list(&[("model.hidden_size", "64"), ("data.0", "a"), ("train.seed", "1")]);
        assert_eq!(compare(&saved, &now), []);
    }
}
