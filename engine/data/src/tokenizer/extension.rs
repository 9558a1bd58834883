//! The pieces that a tokenizer adds to an older one, and how the older one splits their texts: the embeddings of the
//! new pieces are computed from those rows.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};
use tokenizers::Model;

use super::model::{ESCAPE, ModelProto, NormalizerSpec};
use super::spm::SentencePiece;
use super::{ControlTokens, Kind, Tokenizer, is_json, read};
use engine::error::{Error, Result};

/// The pieces that a tokenizer has beyond those of a model's own tokenizer.
pub struct Extension {
    /// Pieces of the model's tokenizer, whose ids the new one keeps.
    pub old_size: usize,
    pub new_size: usize,
    /// For each new piece, the ids into which the model's tokenizer splits its text.
    pub splits: Vec<Vec<u32>>,
}

impl Extension {
    /// Compares the tokenizer of the folder `model` with `tokenizer`, a file or folder. One that does not extend the
    /// model's is the user's mistake.
    pub fn open(model: &Path, tokenizer: &Path) -> Result<Self> {
        let (old, new) = (Tokenizer::in_folder(model, ControlTokens::AsInPython)?, Tokenizer::open(tokenizer)?);
        let (old_size, new_size) = (old.vocab_size(), new.vocab_size());
        let refuse = |what: String| {
            let (new, old) = (new.path().display(), old.path().display());
            Error::user(format!(
                "{new}: it does not extend {old}: {what}; make one with: swallow-engine tokenizer expand"
            ))
        };
        let differs = (0..old_size as u32).find(|&id| old.piece(id) != new.piece(id));
        if let Some(id) = differs {
            let [new, old] =
                [new.piece(id), old.piece(id)].map(|piece| piece.map_or("nothing".into(), |p| format!("{p:?}")));
            return Err(refuse(format!("the id {id} is {new} instead of {old}")));
        }
        if new_size == old_size {
            return Err(refuse(format!("both have the same {old_size} pieces")));
        }
        let surfaces = Surfaces::of(&new)?;
        let splitter = Splitter::of(&old)?;
        let split = |id: u32| {
            let piece = new.piece(id).unwrap_or_default();
            let ids =
                splitter.split(&surfaces.of_piece(&piece)).map_err(|e| refuse(format!("its piece {piece:?}: {e}")))?;
            match ids.is_empty() {
                true => Err(Error::user(format!(
                    "{}: it splits the new piece {piece:?} of the id {id} into nothing; give --init mean or random",
                    old.path().display()
                ))),
                false => Ok(ids),
            }
        };
        let splits = (old_size as u32..new_size as u32).map(split).collect::<Result<_>>()?;
        Ok(Self { old_size, new_size, splits })
    }
}

/// The text or bytes of a piece.
enum Surface {
    Text(String),
    /// Bytes that are no text by themselves, in the letters of byte-level BPE.
    Bytes(String),
}

/// How a tokenizer spells its pieces.
struct Surfaces {
    /// For byte-level BPE, the byte of each letter.
    letters: Option<HashMap<char, u8>>,
    /// Tokens that are spelled as they are.
    added: HashSet<String>,
}

impl Surfaces {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let bytes = read(tokenizer.path())?;
        if !is_json(&bytes) {
            return Ok(Self { letters: None, added: HashSet::new() });
        }
        let json = parse(tokenizer, &bytes)?;
        let tokens = json["added_tokens"].as_array().into_iter().flatten();
        let added = tokens.filter_map(|token| token["content"].as_str()).map(String::from).collect();
        Ok(Self { letters: super::expand::is_byte_level(&json).then(letters), added })
    }

    fn of_piece(&self, piece: &str) -> Surface {
        if self.added.contains(piece) {
            return Surface::Text(piece.into());
        }
        let Some(letters) = &self.letters else {
            return Surface::Text(piece.replace(ESCAPE, " "));
        };
        match piece.chars().map(|c| letters.get(&c).copied()).collect::<Option<Vec<u8>>>() {
            None => Surface::Text(piece.into()),
            Some(bytes) => String::from_utf8(bytes).map_or_else(|_| Surface::Bytes(piece.into()), Surface::Text),
        }
    }
}

/// The inverse of GPT-2's table: printable bytes of Latin-1 stand for themselves, the others for letters from U+0100.
fn letters() -> HashMap<char, u8> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=255).filter(printable).map(|b| (char::from(b), b));
    let others = (0..=255u8).filter(|b| !printable(b));
    own.chain(others.enumerate().map(|(i, b)| (char::from_u32(256 + i as u32).expect("a letter"), b))).collect()
}

/// A tokenizer that puts nothing before a text.
enum Splitter {
    Model(Box<SentencePiece>),
    Json(Box<tokenizers::Tokenizer>),
}

impl Splitter {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let bytes = read(tokenizer.path())?;
        let refuse = |e: String| Error::user(format!("{}: {e}", tokenizer.path().display()));
        if is_json(&bytes) {
            let mut json = parse(tokenizer, &bytes)?;
            remove_prefixes(&mut json);
            let json = tokenizers::Tokenizer::from_bytes(json.to_string());
            return Ok(Self::Json(Box::new(json.map_err(|e| refuse(e.to_string()))?)));
        }
        // A part of a message that comes later replaces its fields.
        let normalizer = NormalizerSpec {
            add_dummy_prefix: Some(false),
            remove_extra_whitespaces: Some(false),
            ..Default::default()
        };
        let change = ModelProto { normalizer: Some(normalizer), ..Default::default() };
        let bytes = [super::expand::without_self_test(&bytes).map_err(refuse)?, change.encode_to_vec()].concat();
        Ok(Self::Model(Box::new(
            SentencePiece::open(tokenizer.path(), &bytes, ControlTokens::AsInPython).map_err(refuse)?,
        )))
    }

    fn split(&self, surface: &Surface) -> std::result::Result<Vec<u32>, String> {
        match (self, surface) {
            (Self::Model(model), Surface::Text(text) | Surface::Bytes(text)) => model.encode(text),
            (Self::Json(json), Surface::Text(text)) => {
                let encoding = json.encode_fast(text.as_str(), false).map_err(|e| e.to_string())?;
                Ok(encoding.get_ids().to_vec())
            }
            (Self::Json(json), Surface::Bytes(letters)) => {
                let tokens = json.get_model().tokenize(letters).map_err(|e| e.to_string())?;
                Ok(tokens.into_iter().map(|token| token.id).collect())
            }
        }
    }
}

fn parse(tokenizer: &Tokenizer, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::user(format!("{}: not JSON: {e}", tokenizer.path().display())))
}

/// Takes away everything that puts a space before a text.
fn remove_prefixes(json: &mut Value) {
    match json["normalizer"]["type"].as_str() {
        Some("Prepend") => json["normalizer"] = Value::Null,
        Some("Sequence") => {
            if let Some(steps) = json["normalizer"]["normalizers"].as_array_mut() {
                steps.retain(|step| step["type"] != "Prepend");
            }
        }
        _ => {}
    }
    let splitter = &mut json["pre_tokenizer"];
    match splitter.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        Some(parts) => parts.iter_mut().for_each(remove_space),
        None => remove_space(splitter),
    }
}

fn remove_space(splitter: &mut Value) {
    match splitter["type"].as_str() {
        Some("Metaspace") => splitter["prepend_scheme"] = json!("never"),
        Some("ByteLevel") => splitter["add_prefix_space"] = json!(false),
        _ => {}
    }
}
