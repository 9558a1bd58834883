//! Hugging Face `tokenizer.json`, through their `tokenizers` crate.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{AddedToken, Model, PostProcessorWrapper};

use super::bigrams::Bigrams;
use super::config::{DummySpace, TokenizerConfig};
use super::cuts::{Cuts, LineCuts, Rules};
use super::fragments::{Ends, Fragments};
use super::library;
use super::{ControlTokens, Kind, Spans, Special};

/// Usual names of BOS and EOS, for files without `tokenizer_config.json` and `special_tokens_map.json`.
const BOS: [&str; 4] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>"];
const EOS: [&str; 5] = ["</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|im_end|>"];

pub struct HuggingFace {
    tokenizer: tokenizers::Tokenizer,
    vocab_size: usize,
    bos: Special,
    eos: Special,
    /// The ids of the control tokens, ascending.
    controls: Vec<u32>,
    /// Where a text is to be read without control tokens: those that the model makes of a text by itself, and the ids
    /// of their letters.
    letters: HashMap<u32, Vec<u32>>,
    /// Cuts between words.
    cuts: Cuts,
    /// Cuts at newlines, where the tokenizer does not split texts into words.
    line_cuts: Option<LineCuts>,
    fragments: Option<Fragments>,
}

impl HuggingFace {
    pub fn open(path: &Path, bytes: &[u8], controls: ControlTokens) -> Result<Self, String> {
        let rules: Rules = serde_json::from_slice(bytes).map_err(|e| match e.is_data() {
            true => format!("not a tokenizer: {e}"),
            false => format!("not JSON: {e}"),
        })?;
        // serde does not check the encoding of what `Rules` does not read; `tokenizers` panics if it is invalid.
        std::str::from_utf8(bytes).map_err(|e| format!("not JSON: {e}"))?;
        library::check(&rules, bytes)?;
        let config = TokenizerConfig::beside(path)?;
        let mut tokenizer = match (controls, llama_spaces(&rules, &config)) {
            (ControlTokens::Chat, Some(dummy)) => with_spaces(bytes, dummy)?,
            _ => tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| format!("not a tokenizer: {e}"))?,
        };
        // A file may ask for truncation and padding of every text; a corpus must have neither. Post-processors add BOS
        // and EOS, which is not asked for here, and take white space out of the bytes that a token holds.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?.with_padding(None);
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        if controls == ControlTokens::Chat {
            add_tokens(&mut tokenizer, &config)?;
        }
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab_size = largest.ok_or("its vocabulary is empty")? as usize + 1;
        // Ids may have gaps, but tables over all ids must not be longer than the pieces of the file allow by much.
        if vocab_size > bytes.len() {
            return Err(format!("its largest id is {}, in a file of {} bytes", vocab_size - 1, bytes.len()));
        }
        let (bos, eos) = {
            let special = |key, known: &[&str]| special(&config, key, known, &rules, &tokenizer);
            (special("bos_token", &BOS), special("eos_token", &EOS))
        };
        let mut control_ids = control_ids(&tokenizer);
        control_ids.sort_unstable();
        let letters = match controls {
            ControlTokens::Text => {
                tokenizer.set_encode_special_tokens(true);
                let named = rules.model.unk_token.as_deref().and_then(|name| tokenizer.token_to_id(name));
                letters(&tokenizer, &control_ids, named.or(rules.model.unk_id))
            }
            _ => HashMap::new(),
        };
        let line_cuts = match keeps_newlines_apart(&rules, &tokenizer) {
            true => LineCuts::of(|text| encode(&tokenizer, text))?,
            false => None,
        };
        let cuts = Cuts::of(&rules);
        let ends = match &line_cuts {
            Some(_) => serde_json::from_slice(bytes).ok().as_ref().and_then(Bigrams::of_json).map(Ends::Bigrams),
            None => Some(Ends::Words(cuts)).filter(|_| cuts != Cuts::default()),
        };
        let fragments = ends.map(Fragments::new);
        Ok(Self { vocab_size, bos, eos, controls: control_ids, letters, cuts, line_cuts, fragments, tokenizer })
    }
}

/// The id of BOS or EOS. The files beside the tokenizer decide, even if they say that there is none. Without them, it
/// is the special token with a usual name; an ordinary piece with that name does not count.
fn special(
    config: &TokenizerConfig,
    key: &str,
    usual: &[&str],
    rules: &Rules,
    tokenizer: &tokenizers::Tokenizer,
) -> Special {
    if let Some((name, token)) = config.get(key) {
        let id = config.token(key).flatten().and_then(|text| tokenizer.token_to_id(text));
        return id.ok_or_else(|| format!("{name} beside it has \"{key}\": {token}"));
    }
    let is_special = |name: &str| rules.added_tokens.iter().any(|token| token.special && token.content == name);
    let id = usual.iter().filter(|name| is_special(name)).find_map(|name| tokenizer.token_to_id(name));
    id.ok_or_else(|| format!("none of its special tokens is {}", usual.join(", ")))
}

fn control_ids(tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    added.into_iter().filter(|(_, token)| token.special).map(|(id, _)| id).collect()
}

/// The control tokens whose spelling the model makes into their id even where they are not looked for, as Unigram
/// models do, each with the ids of its letters. The token of unknown characters stays what the model makes of them.
fn letters(tokenizer: &tokenizers::Tokenizer, controls: &[u32], unknown: Option<u32>) -> HashMap<u32, Vec<u32>> {
    let spelled = |&id: &u32| Some((id, tokenizer.id_to_token(id)?));
    let found = |(id, text): &(u32, String)| {
        let alone = tokenizer.get_model().tokenize(text).unwrap_or_default();
        alone.iter().any(|token| token.id == *id)
    };
    let apart = |(id, text): (u32, String)| {
        let mut ids = Vec::new();
        apart(tokenizer, controls, &text, &mut ids);
        (id, ids)
    };
    controls.iter().filter(|id| unknown != Some(**id)).filter_map(spelled).filter(found).map(apart).collect()
}

/// Appends the ids of a text without those of `controls`: where the model returns one, its first letter and the others
/// are encoded apart.
fn apart(tokenizer: &tokenizers::Tokenizer, controls: &[u32], text: &str, ids: &mut Vec<u32>) {
    for token in tokenizer.get_model().tokenize(text).unwrap_or_default() {
        // The token of an unknown character has a name that is not in the text, and no letters.
        let is_spelled = text.contains(&token.value);
        let first = token.value.chars().next().map_or(0, char::len_utf8);
        match is_spelled && controls.binary_search(&token.id).is_ok() && first < token.value.len() {
            true => {
                let (first, others) = token.value.split_at(first);
                apart(tokenizer, controls, first, ids);
                apart(tokenizer, controls, others, ids);
            }
            false => ids.push(token.id),
        }
    }
}

/// The tokens that `transformers` adds, or whose white space it treats in another way than `tokenizer.json` says.
fn add_tokens(tokenizer: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<(), String> {
    for (id, token) in config.added_tokens()? {
        let name = "tokenizer_config.json beside it";
        let token: AddedToken = serde_json::from_value(token.clone())
            .map_err(|e| format!("{name} has a token in added_tokens_decoder that is not understood: {e}"))?;
        let content = token.content.clone();
        match token.special {
            true => tokenizer.add_special_tokens(&[token]),
            false => tokenizer.add_tokens(&[token]),
        };
        if let Some(other) = tokenizer.token_to_id(&content).filter(|&other| other != id) {
            return Err(format!("{name} gives the token {content:?} the id {id}, but here it has the id {other}"));
        }
    }
    Ok(())
}

/// Where `transformers` puts the dummy space of a tokenizer that was made from a SentencePiece model of Llama's kind;
/// `None` where it takes the file as it is.
fn llama_spaces(rules: &Rules, config: &TokenizerConfig) -> Option<DummySpace> {
    let prepends = |normalizer: &Value| normalizer["type"] == "Prepend";
    let normalizers = rules.normalizer["normalizers"].as_array();
    let from_model = prepends(&rules.normalizer)
        || normalizers.is_some_and(|all| all.iter().any(prepends))
        || rules.pre_tokenizer["type"] == "Metaspace";
    let is_bpe = rules.model.kind.as_deref() == Some("BPE");
    (is_bpe && from_model && config.is_llama()).then(|| config.dummy_space())
}

fn with_spaces(bytes: &[u8], dummy: DummySpace) -> Result<tokenizers::Tokenizer, String> {
    let scheme = match dummy {
        DummySpace::EveryPart => "always",
        DummySpace::TextOnly => "first",
        DummySpace::Never => "never",
    };
    let mut file: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
    file["normalizer"] = Value::Null;
    file["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
    tokenizers::Tokenizer::from_bytes(file.to_string()).map_err(|e| format!("not a tokenizer: {e}"))
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

/// Whether the normalizer keeps every newline, whatever its neighbours are, and makes no new ones.
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

/// A dummy space has no bytes of the text. The library gives it those of the first character, which the next token has
/// too.
fn drop_dummy_spaces(tokens: &[String], bytes: &mut [std::ops::Range<usize>]) {
    for i in 1..bytes.len() {
        let is_space = matches!(tokens[i - 1].as_str(), "\u{2581}" | "\u{120}");
        if is_space && bytes[i - 1].start == bytes[i].start {
            bytes[i - 1].end = bytes[i].start;
        }
    }
}

impl Kind for HuggingFace {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let ids = encode(&self.tokenizer, text)?;
        if self.letters.is_empty() {
            return Ok(ids);
        }
        let letters = |id: &u32| self.letters.get(id).cloned().unwrap_or_else(|| vec![*id]);
        match ids.iter().any(|id| self.letters.contains_key(id)) {
            true => Ok(ids.iter().flat_map(letters).collect()),
            false => Ok(ids),
        }
    }

    fn encode_spans(&self, text: &str) -> Result<Spans, String> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| e.to_string())?;
        let mut bytes: Vec<_> = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        if bytes.iter().any(|bytes| bytes.end > text.len()) {
            return Err("it gives tokens places beyond the end of the text, as end_of_word_suffix together with \
                        byte_fallback does; remove one of them"
                .into());
        }
        drop_dummy_spaces(encoding.get_tokens(), &mut bytes);
        let mut spans = Spans::default();
        for (&id, bytes) in encoding.get_ids().iter().zip(bytes) {
            match self.letters.get(&id) {
                Some(letters) => letters.iter().for_each(|&id| spans.push(id, bytes.clone())),
                None => spans.push(id, bytes),
            }
        }
        Ok(spans)
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

    fn id(&self, piece: &str) -> Option<u32> {
        self.tokenizer.token_to_id(piece)
    }

    fn controls(&self) -> &[u32] {
        &self.controls
    }

    fn cut(&self, text: &[u8]) -> Option<usize> {
        match &self.line_cuts {
            Some(_) => LineCuts::last(text),
            None => self.cuts.last(text),
        }
    }

    fn fragments(&self) -> Option<&Fragments> {
        self.fragments.as_ref()
    }
}
