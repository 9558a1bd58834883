//! Hugging Face `tokenizer.json`, through their `tokenizers` crate.

use std::path::Path;

use serde_json::Value;

use super::Kind;

/// Names of BOS and EOS where no `tokenizer_config.json` beside the file tells them.
const BOS: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"];
const EOS: [&str; 5] = ["</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>"];

pub struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    cuts: bool,
}

impl HuggingFace {
    pub fn open(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let json: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| format!("not a tokenizer: {e}"))?;
        // A file may ask for every text to be cut or filled up to a length; a corpus must not be.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?.with_padding(None);
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.ok_or("its vocabulary is empty")? as usize + 1;
        let config = path.with_file_name("tokenizer_config.json");
        let config = std::fs::read(config).ok().and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let named = |key: &str, known: &[&str]| {
            let token = config.as_ref().and_then(|c| c.get(key));
            let token = token.and_then(|t| t.get("content").unwrap_or(t).as_str());
            let token = token.and_then(|t| tokenizer.token_to_id(t));
            token.or_else(|| known.iter().find_map(|name| tokenizer.token_to_id(name)))
        };
        let (bos, eos) = (named("bos_token", &BOS), named("eos_token", &EOS));
        Ok(Self { vocab_size, bos, eos, cuts: cuts_at_words(&json), tokenizer })
    }
}

/// Whether a text may be cut between a visible character and the white space after it: in GPT-2's own splitting
/// into words, which is byte-level with its regular expression, no word goes on there, and none looks back. (Behind
/// white space it may not: how a run of it is split depends on what follows.)
fn cuts_at_words(json: &Value) -> bool {
    let splitter = &json["pre_tokenizer"];
    let on = |value: &Value, key: &str| value[key].as_bool() == Some(true);
    let added = json["added_tokens"].as_array();
    let harmless = |t: &Value| {
        !on(t, "lstrip") && !on(t, "rstrip") && t["content"].as_str().is_some_and(|c| !c.contains(char::is_whitespace))
    };
    json["normalizer"].is_null()
        && splitter["type"] == "ByteLevel"
        && splitter["add_prefix_space"].as_bool() == Some(false)
        && splitter["use_regex"].as_bool() != Some(false)
        && json["model"]["type"] == "BPE"
        && json["model"]["dropout"].is_null()
        && added.is_none_or(|tokens| tokens.iter().all(harmless))
}

impl Kind for HuggingFace {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|e| e.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    fn encode_rest(&self, text: &str) -> Result<Vec<u32>, String> {
        self.encode(text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.tokenizer.decode(ids, true).map_err(|e| e.to_string())
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn bos(&self) -> Option<u32> {
        self.bos
    }

    fn eos(&self) -> Option<u32> {
        self.eos
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    fn cut(&self, text: &[u8]) -> Option<usize> {
        if self.cuts { word_cut(text) } else { None }
    }
}

/// The last place between a visible character and a space or newline.
pub fn word_cut(text: &[u8]) -> Option<usize> {
    (1..text.len()).rev().find(|&at| matches!(text[at], b' ' | b'\n') && ends_visibly(&text[..at]))
}

/// Whether the last character is whole and no whitespace.
fn ends_visibly(text: &[u8]) -> bool {
    let start = (text.len().saturating_sub(4)..text.len()).rev().find(|&at| text[at] & 0xc0 != 0x80);
    let last = start.and_then(|at| std::str::from_utf8(&text[at..]).ok());
    last.and_then(|s| s.chars().next()).is_some_and(|c| !c.is_whitespace())
}
