//! `tokenizer.json` files on which the `tokenizers` library panics. They are refused before it reads them.

use serde_json::Value;

use super::cuts::Rules;
use super::expand::merges;

/// The error says what to change in the file.
pub fn check(rules: &Rules, bytes: &[u8]) -> Result<(), String> {
    if strips_ends(&rules.decoder) {
        return Err("its decoder Strip has a \"stop\" above 0, which fails on short tokens; set it to 0".into());
    }
    match rules.model.continuing_subword_prefix.as_deref() {
        None | Some("") => Ok(()),
        Some(prefix) => check_merges(prefix, bytes),
    }
}

/// The library knows a decoder by its keys, where it has no type.
fn strips_ends(decoder: &Value) -> bool {
    match decoder {
        Value::Array(all) => all.iter().any(strips_ends),
        Value::Object(all) => all.get("stop").is_some_and(|stop| *stop != 0) || all.values().any(strips_ends),
        _ => false,
    }
}

/// The library cuts the prefix off the second part of every merge, without looking at it.
fn check_merges(prefix: &str, bytes: &[u8]) -> Result<(), String> {
    let file: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    // A model without merges has no such part, and the library refuses merges of another form.
    let merges = merges(&file).unwrap_or_default();
    match merges.iter().find(|(_, second)| !second.starts_with(prefix)) {
        None => Ok(()),
        Some((first, second)) => Err(format!(
            "the second part of its merge of {first:?} and {second:?} does not begin with its \
             continuing_subword_prefix {prefix:?}; correct one of them"
        )),
    }
}
