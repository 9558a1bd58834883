//! The parts of a `tokenizer.json` that an expansion reads and writes.

use std::path::Path;

use engine::error::{Error, Result};
use serde_json::{Value, json};

use super::super::merges::Merge;
use super::super::read as read_file;

pub fn read(path: &Path) -> Result<Value> {
    let refuse = |e| Error::user(format!("{}: not JSON: {e}", path.display()));
    serde_json::from_slice(&read_file(path)?).map_err(refuse)
}

/// The text of a file, as `transformers` lays it out.
pub fn bytes(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("strings and numbers are JSON");
    bytes.push(b'\n');
    bytes
}

/// Whether the file is byte-level BPE, as GPT-2's, Llama 3's and Qwen's.
pub fn is_byte_level(json: &Value) -> bool {
    let has_byte_level = |part: &Value| {
        let parts = ["pretokenizers", "decoders"].iter().filter_map(|key| part[*key].as_array()).flatten();
        std::iter::once(part).chain(parts).any(|part| part["type"] == "ByteLevel")
    };
    let byte_fallback = json["model"]["byte_fallback"] == true;
    json["model"]["type"] == "BPE"
        && !byte_fallback
        && (has_byte_level(&json["pre_tokenizer"]) || has_byte_level(&json["decoder"]))
}

/// The merges in their order. Older files have the two parts of a merge in one string.
pub fn merges(json: &Value) -> std::result::Result<Vec<Merge>, String> {
    let merges = json["model"]["merges"].as_array().ok_or("it has no merges")?;
    let merge = |value: &Value| {
        let parts = match value.as_str() {
            Some(both) => both.split_once(' '),
            None => value.get(0).and_then(Value::as_str).zip(value.get(1).and_then(Value::as_str)),
        };
        let parts = parts.map(|(left, right)| (left.to_string(), right.to_string()));
        parts.ok_or_else(|| format!("{value} is not a merge of two pieces"))
    };
    merges.iter().map(merge).collect()
}

/// Replaces the merges, in the form that they have.
pub fn set_merges(json: &mut Value, merges: Vec<Merge>) {
    let strings = json["model"]["merges"].get(0).is_some_and(Value::is_string);
    let merge = |(left, right): Merge| match strings {
        true => json!(format!("{left} {right}")),
        false => json!([left, right]),
    };
    json["model"]["merges"] = merges.into_iter().map(merge).collect();
}
