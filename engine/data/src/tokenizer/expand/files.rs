//! The files of the output beside the tokenizer itself: BASE's own, which stay true because old ids do, and those that
//! `transformers` needs, where BASE has none.

use serde_json::{Map, Value, json};

use super::{File, Source, json as tokenizer_json};
use engine::error::{Error, Result};

/// Copied as they are.
const COPIED: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];

const NAMED: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Adds the files that are missing. Returns remarks for the user.
pub fn complete(base: &Source, files: &mut Vec<File>) -> Result<Option<String>> {
    for name in COPIED {
        if let Some(path) = base.beside(name).filter(|_| !has(files, name)) {
            files.push((name.into(), std::fs::read(&path).map_err(|e| Error::io(&path, e))?));
        }
    }
    if !has(files, "tokenizer_config.json") {
        files.push(("tokenizer_config.json".into(), tokenizer_json::bytes(&config(base))));
    }
    if !has(files, "special_tokens_map.json") {
        let config = files.iter().find(|(name, _)| name == "tokenizer_config.json").map(|(_, bytes)| bytes);
        let config: Value = serde_json::from_slice(config.expect("it was just added")).map_err(|e| base.error(e))?;
        let named = NAMED.iter().filter(|key| !config[**key].is_null());
        let map: Map<String, Value> = named.map(|key| (key.to_string(), config[*key].clone())).collect();
        files.push(("special_tokens_map.json".into(), tokenizer_json::bytes(&map.into())));
    }
    let tiktoken = base.beside("tokenizer.model").filter(|_| !has(files, "tokenizer.model"));
    Ok(tiktoken.map(|path| format!("{}: not expanded and left out; the tokenizer.json is", path.display())))
}

fn has(files: &[File], name: &str) -> bool {
    files.iter().any(|(file, _)| file == name)
}

/// A `tokenizer_config.json` that has `transformers` take everything from the `tokenizer.json`.
fn config(base: &Source) -> Value {
    let tokenizer = &base.tokenizer;
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    for (key, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
        if let Some(piece) = id.ok().and_then(|id| tokenizer.piece(id)) {
            config[key] = json!(piece);
        }
    }
    if let super::Kind::Model(model) = &base.kind {
        let unknown = model.pieces.iter().find(|piece| piece.kind() == super::super::model::Kind::Unknown);
        config["unk_token"] = json!(unknown.and_then(|piece| piece.piece.as_deref()));
    }
    config
}

/// Refuses tokens that files beside BASE add beyond its `size` pieces: new pieces would take their ids.
pub fn check_added(base: &Source, size: usize) -> Result<()> {
    let tokens = |name: &str, json: &Value| -> Vec<(String, u64)> {
        let named = |(token, id): (&String, &Value)| Some((token.clone(), id.as_u64()?));
        let numbered =
            |(id, token): (&String, &Value)| Some((token["content"].as_str()?.to_string(), id.parse().ok()?));
        let entry = |token: &Value| Some((token["content"].as_str()?.to_string(), token["id"].as_u64()?));
        match name {
            "added_tokens.json" => json.as_object().into_iter().flatten().filter_map(named).collect(),
            "tokenizer.json" => json["added_tokens"].as_array().into_iter().flatten().filter_map(entry).collect(),
            _ => json["added_tokens_decoder"].as_object().into_iter().flatten().filter_map(numbered).collect(),
        }
    };
    for name in ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"] {
        let Some(path) = base.beside(name) else { continue };
        let beyond = tokens(name, &tokenizer_json::read(&path)?).into_iter().find(|(_, id)| *id >= size as u64);
        if let Some((token, id)) = beyond {
            return Err(Error::user(format!(
                "{}: its token {token:?} has the id {id}, beyond the {size} pieces of {}; new pieces would take that \
                 id. Expand the tokenizer without that token",
                path.display(),
                base.path().display()
            )));
        }
    }
    Ok(())
}

/// BASE's `tokenizer_config.json` with a class of `transformers` that takes the normalizer from the `tokenizer.json`;
/// its class for Llama has none, and its class for Qwen another one.
pub fn with_own_normalizer(base: &Source) -> Result<Option<File>> {
    let Some(path) = base.beside("tokenizer_config.json") else { return Ok(None) };
    let mut config = tokenizer_json::read(&path)?;
    config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
    Ok(Some(("tokenizer_config.json".into(), tokenizer_json::bytes(&config))))
}
