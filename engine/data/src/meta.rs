//! `PREFIX.meta.json`: which tokenizer made a token file. `data inspect` decodes with that tokenizer, an exported
//! checkpoint includes it, and sources made with different tokenizers are refused by it. The file and each of its keys
//! are optional: Megatron's own token files have none.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::partial::with_suffix;
use super::tokenizer::{Identity, Tokenizer};
use engine::error::{Error, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// The tokenizer's file, as an absolute path.
    pub tokenizer: Option<String>,
    /// Its BLAKE3 hash.
    pub blake3: Option<String>,
    pub vocab_size: Option<usize>,
    /// The ids put before and after every document.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// How control tokens that a text spells out were encoded: `text` or `parse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub special_tokens: Option<String>,
    /// The kind of records: `pairs` or `chats`; plain texts where it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<String>,
    /// The text around the pairs, or the BLAKE3 hash of the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether `PREFIX.mask.bin` says which tokens count in the loss.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mask: bool,
    /// The tokenizer's identity, which stays the same if its file is saved again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

impl Meta {
    pub fn new(tokenizer: &Tokenizer, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        let path = tokenizer.path();
        let io = |e| Error::io(path, e);
        let bytes = std::fs::read(path).map_err(io)?;
        Ok(Self {
            tokenizer: Some(std::fs::canonicalize(path).map_err(io)?.to_string_lossy().into_owned()),
            blake3: Some(hash(&bytes)),
            vocab_size: Some(tokenizer.vocab_size()),
            bos,
            eos,
            mask: false,
            identity: Identity::of(&bytes).ok(),
            ..Self::default()
        })
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers are JSON") + "\n"
    }

    /// `None` where there is no such file. A file that is damaged is the user's mistake: without it a mask would count
    /// for nothing.
    pub fn read(prefix: &Path) -> Result<Option<Self>> {
        let path = with_suffix(prefix, "meta.json");
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(|e| Error::io(&path, e))?,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            let remedy = "tokenize again, or remove the file where the token file has no mask";
            Error::user(format!("{}: the file is damaged: {e}; {remedy}", path.display()))
        })
    }

    /// The tokenizer's path, if the file is still there and still the same.
    pub fn unchanged_tokenizer(&self) -> Option<&Path> {
        let path = Path::new(self.tokenizer.as_deref()?);
        let bytes = std::fs::read(path).ok()?;
        (hash(&bytes) == *self.blake3.as_ref()?).then_some(path)
    }

    /// The tokenizer's identity, where it is stored or can still be computed from the tokenizer's file.
    pub fn identity(&self) -> Option<Identity> {
        self.identity.clone().or_else(|| Identity::of(&std::fs::read(self.unchanged_tokenizer()?).ok()?).ok())
    }
}

/// The BLAKE3 hash of a tokenizer's file.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
