//! Edits of JSON and TOML that leave the syntax whole, so that the checks behind it are reached.

use crate::mutate::Rng;
use serde_json::{Value, json};
use std::ops::Range;

/// Changes a value, key or element of a file that holds JSON or TOML; false if it holds neither.
pub fn edit(rng: &mut Rng, bytes: &mut Vec<u8>, words: &[Vec<u8>]) -> bool {
    let place = place(rng, bytes);
    let changed = match serde_json::from_slice::<Value>(&bytes[place.clone()]) {
        Ok(json) => changed(rng, json, words).to_string(),
        Err(_) => {
            let toml = std::str::from_utf8(&bytes[place.clone()]).ok().and_then(|text| toml::from_str(text).ok());
            // TOML has no null.
            let text = toml.and_then(|value| toml::to_string(&changed(rng, value, words)).ok());
            let Some(text) = text else { return false };
            text
        }
    };
    if place.start == 8 {
        bytes[..8].copy_from_slice(&(changed.len() as u64).to_le_bytes());
    }
    bytes.splice(place, changed.into_bytes());
    true
}

fn changed(rng: &mut Rng, mut value: Value, words: &[Vec<u8>]) -> Value {
    let all = value.clone();
    change(rng, &mut value, &all, words);
    value
}

/// The whole file, a line of JSON lines, or the header of a safetensors file, which begins with its length.
fn place(rng: &mut Rng, bytes: &[u8]) -> Range<usize> {
    if bytes.get(8) == Some(&b'{') {
        let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        if let Some(end) = len.checked_add(8).filter(|&end| end <= bytes.len()) {
            return 8..end;
        }
    }
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let ends: Vec<usize> = ends.chain([bytes.len()]).collect();
    let line = rng.below(ends.len());
    let start = if line == 0 { 0 } else { ends[line - 1] + 1 };
    match bytes[start..ends[line]] {
        [b'{', .., b'}'] => start..ends[line],
        _ => 0..bytes.len(),
    }
}

/// Walks down to some value and changes it; `all` is where other values come from.
fn change(rng: &mut Rng, value: &mut Value, all: &Value, words: &[Vec<u8>]) {
    let deeper = rng.below(8) > 0;
    match value {
        Value::Array(list) if deeper && !list.is_empty() => {
            let at = rng.below(list.len());
            match rng.below(8) {
                0 => _ = list.remove(at),
                1 => list.insert(at, some(rng, all).clone()),
                _ => change(rng, &mut list[at], all, words),
            }
        }
        Value::Object(map) if deeper && !map.is_empty() => {
            let key = map.keys().nth(rng.below(map.len())).expect("a key").clone();
            match rng.below(12) {
                0 => _ = map.shift_remove(&key),
                1 => _ = map.insert(word(rng, words).as_str().unwrap_or("key").into(), some(rng, all).clone()),
                _ => change(rng, &mut map[&key], all, words),
            }
        }
        _ if rng.below(3) == 0 => *value = some(rng, all).clone(),
        _ => *value = word(rng, words),
    }
}

/// Some value below `value`.
fn some<'v>(rng: &mut Rng, value: &'v Value) -> &'v Value {
    let below: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    if below.is_empty() || rng.below(8) == 0 {
        return value;
    }
    let at = rng.below(below.len());
    some(rng, below[at])
}

fn word(rng: &mut Rng, words: &[Vec<u8>]) -> Value {
    let word = rng.pick(words);
    serde_json::from_slice(word).unwrap_or_else(|_| json!(String::from_utf8_lossy(word)))
}
