//! `tokenizer_config.json` and `special_tokens_map.json` beside a tokenizer: which tokens are BOS and EOS, and what
//! `transformers` changes in a tokenizer when it opens it.

use std::path::Path;

use serde_json::Value;

/// The files that may name BOS and EOS, in the order in which they are asked.
pub(super) const NAMES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// The parsed files; those that are missing are left out.
pub struct TokenizerConfig {
    files: Vec<(&'static str, Value)>,
}

/// Where a tokenizer made from a SentencePiece model puts its dummy space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DummySpace {
    /// Before a text, and after each control token in it.
    EveryPart,
    /// Only before a text that does not begin with a control token.
    TextOnly,
    Never,
}

impl TokenizerConfig {
    /// The error names the file.
    pub fn beside(tokenizer: &Path) -> Result<Self, String> {
        let mut files = Vec::new();
        for name in NAMES {
            let file = tokenizer.with_file_name(name);
            let Ok(bytes) = std::fs::read(&file) else { continue };
            let value = serde_json::from_slice(&bytes);
            files.push((name, value.map_err(|e| format!("{} beside it is not JSON: {e}", file.display()))?));
        }
        Ok(Self { files })
    }

    /// The value of a key and the file that has it.
    pub fn get(&self, key: &str) -> Option<(&'static str, &Value)> {
        self.files.iter().find_map(|(name, config)| Some((*name, config.get(key)?)))
    }

    /// The spelling of a token such as `eos_token`: `None` where no file has the key, `Some(None)` where the value is
    /// `null`.
    pub fn token(&self, key: &str) -> Option<Option<&str>> {
        self.get(key).map(|(_, token)| spelling(token))
    }

    /// The tokens that `transformers` adds to those of `tokenizer.json`, with their ids, ascending.
    pub fn added_tokens(&self) -> Result<Vec<(u32, &Value)>, String> {
        let Some((name, added)) = self.get("added_tokens_decoder") else { return Ok(Vec::new()) };
        let entries = added.as_object().into_iter().flatten();
        let parsed = entries.map(|(id, token)| {
            let number = id.parse().map_err(|_| format!("{name} beside it has the id {id:?} in added_tokens_decoder"));
            Ok((number?, token))
        });
        let mut tokens = parsed.collect::<Result<Vec<_>, String>>()?;
        tokens.sort_by_key(|(id, _)| *id);
        Ok(tokens)
    }

    /// Whether `transformers` opens the tokenizer with its class for Llama, whatever the file says about spaces.
    pub fn is_llama(&self) -> bool {
        let class = self.get("tokenizer_class").and_then(|(_, class)| class.as_str());
        matches!(class, Some("LlamaTokenizer" | "LlamaTokenizerFast"))
    }

    /// The dummy space of `transformers`' class for Llama.
    pub fn dummy_space(&self) -> DummySpace {
        let flag = |key| self.get(key).and_then(|(_, value)| value.as_bool());
        match (flag("add_prefix_space"), flag("legacy")) {
            (Some(false), _) => DummySpace::Never,
            (_, Some(true)) => DummySpace::EveryPart,
            _ => DummySpace::TextOnly,
        }
    }
}

/// A token is a string, or an object with its spelling under `content`.
pub fn spelling(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}
