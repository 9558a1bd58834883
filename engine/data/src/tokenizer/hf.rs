//! Hugging Face `tokenizer.json`, through their `tokenizers` crate.

use std::path::Path;

use serde_json::Value;

use super::cuts::{Cuts, LineCuts, Rules};
use super::{Kind, Special};

/// Usual names of BOS and EOS, for files without `tokenizer_config.json` and `special_tokens_map.json`.
const BOS: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"];
const EOS: [&str; 5] = ["</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>"];

pub struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    vocab_size: usize,
    bos: Special,
    eos: Special,
    /// Cuts between words.
    cuts: Cuts,
    /// Cuts at newlines, where the tokenizer does not split texts into words.
    line_cuts: Option<LineCuts>,
}

impl HuggingFace {
    pub fn open(path: &Path, bytes: &[u8]) -> Result<Self, String> {
        let rules: Rules = serde_json::from_slice(bytes).map_err(|e| match e.is_data() {
            true => format!("not a tokenizer: {e}"),
            false => format!("not JSON: {e}"),
        })?;
        // serde does not check the encoding of what `Rules` does not read; `tokenizers` panics if it is invalid.
        std::str::from_utf8(bytes).map_err(|e| format!("not JSON: {e}"))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| format!("not a tokenizer: {e}"))?;
        // A file may ask for truncation and padding of every text; a corpus must have neither.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?.with_padding(None);
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.ok_or("its vocabulary is empty")? as usize + 1;
        let (bos, eos) = {
            let special = |key, known: &[&str]| special(path, key, known, &rules, &tokenizer);
            (special("bos_token", &BOS)?, special("eos_token", &EOS)?)
        };
        let line_cuts = match keeps_newlines_apart(&rules, &tokenizer) {
            true => LineCuts::of(|text| encode(&tokenizer, text))?,
            false => None,
        };
        Ok(Self { vocab_size, bos, eos, cuts: Cuts::of(&rules), line_cuts, tokenizer })
    }
}

/// The id of BOS or EOS. The files beside the tokenizer decide, even if they say that there is none. Without them, it
/// is the special token with a usual name; an ordinary piece with that name does not count.
fn special(
    path: &Path,
    key: &str,
    usual: &[&str],
    rules: &Rules,
    tokenizer: &tokenizers::Tokenizer,
) -> Result<Special, String> {
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let file = path.with_file_name(name);
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let config: Value =
            serde_json::from_slice(&bytes).map_err(|e| format!("{} beside it is not JSON: {e}", file.display()))?;
        let Some(token) = config.get(key) else { continue };
        let text = token.get("content").unwrap_or(token).as_str();
        let id = text.and_then(|text| tokenizer.token_to_id(text));
        return Ok(id.ok_or_else(|| format!("{name} beside it has \"{key}\": {token}")));
    }
    let is_special = |name: &str| rules.added_tokens.iter().any(|token| token.special && token.content == name);
    let id = usual.iter().filter(|name| is_special(name)).find_map(|name| tokenizer.token_to_id(name));
    Ok(id.ok_or_else(|| format!("none of its special tokens is {}", usual.join(", "))))
}

/// Whether byte-pair encoding runs over the whole text and no longer piece holds a newline, as in files converted from
/// SentencePiece models such as Llama 2's.
fn keeps_newlines_apart(rules: &Rules, tokenizer: &tokenizers::Tokenizer) -> bool {
    const BYTE: &str = "<0x0A>";
    let whole = match rules.pre_tokenizer["type"].as_str() {
        None => rules.pre_tokenizer.is_null(),
        Some(kind) => kind == "Metaspace" && rules.pre_tokenizer["split"].as_bool() == Some(false),
    };
    let vocabulary = tokenizer.get_vocab(false);
    let known =
        vocabulary.contains_key("\n") || (rules.model.byte_fallback == Some(true) && vocabulary.contains_key(BYTE));
    let longer = |piece: &String| piece != "\n" && piece != BYTE && (piece.contains('\n') || piece.contains(BYTE));
    whole
        && known
        && rules.model.kind.as_deref() == Some("BPE")
        && rules.model.dropout.is_null()
        && changes_no_line(&rules.normalizer)
        && !vocabulary.keys().any(longer)
        && !rules.added_tokens.iter().any(|token| token.lstrip || token.rstrip || token.content.contains('\n'))
}

/// Whether the normalizer makes of a newline a newline, whatever stands beside it, and of nothing else.
fn changes_no_line(normalizer: &Value) -> bool {
    let in_a_line = |text: &Value| text.as_str().is_some_and(|text| !text.contains('\n'));
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("Prepend" | "NFKC") => true,
        Some("Replace") => in_a_line(&normalizer["pattern"]["String"]) && in_a_line(&normalizer["content"]),
        Some("Sequence") => normalizer["normalizers"].as_array().is_some_and(|all| all.iter().all(changes_no_line)),
        Some(_) => false,
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>, String> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|e| e.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

impl Kind for HuggingFace {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        encode(&self.tokenizer, text)
    }

    fn encode_rest(&self, text: &str) -> Result<Vec<u32>, String> {
        match &self.line_cuts {
            Some(cuts) => cuts.encode_rest(text, |text| self.encode(text)),
            None => self.encode(text),
        }
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.tokenizer.decode(ids, true).map_err(|e| e.to_string())
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn bos(&self) -> Special {
        self.bos.clone()
    }

    fn eos(&self) -> Special {
        self.eos.clone()
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    fn cut(&self, text: &[u8]) -> Option<usize> {
        match &self.line_cuts {
            Some(_) => LineCuts::last(text),
            None => self.cuts.last(text),
        }
    }
}
