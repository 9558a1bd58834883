//! Texts and tokenizers.

use crate::case::root;
use data::chat::Chats;
use data::check::{Limits, check};
use data::pairs::{Direction, Loss, PairSource, Pairs};
use data::text::{Format, Inputs};
use data::tokenize::{Job, Records, tokenize};
use data::tokenizer::expand::{Expand, expand as append};
use data::tokenizer::{ControlTokens, Extension, Identity, PieceBytes, Tokenizer};
use engine::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a tokenizer encodes: control tokens, Japanese, combined characters, blanks, line ends.
const SAMPLES: [&str; 4] =
    ["", "<s>Hello</s> <|endoftext|>\n\n  world 2024", "東京都は\u{3000}「日本」の首都。", "é e\u{301} \0\t🗼"];

/// Texts and JSON lines, plain or compressed.
pub fn texts() -> Result<()> {
    let inputs = Inputs { paths: files_of_texts(), format: None, key: "text".into() };
    let tokenizer = golden_tokenizer(ControlTokens::Text)?;
    let whole = inputs.for_each_document(|_| Ok(()));
    let skipping = write(Records::Texts(&inputs), &tokenizer, true);
    whole.and(write(Records::Texts(&inputs), &tokenizer, false)).and(skipping)
}

/// `ja.txt` and `en.txt`, or `pairs.jsonl`, and the text around a pair in `template.txt`.
pub fn pairs() -> Result<()> {
    let json = PathBuf::from("pairs.jsonl");
    let source = match json.exists() {
        true => {
            let inputs = Inputs { paths: vec![json], format: Some(Format::JsonLines), key: String::new() };
            PairSource::Json(inputs, ["ja".into(), "en".into()])
        }
        false => PairSource::Lines(["ja.txt".into(), "en.txt".into()]),
    };
    let template = std::fs::read("template.txt").unwrap_or_default();
    let template = String::from_utf8_lossy(&template);
    let templated = Pairs::templated(source.clone(), Direction::Both, Loss::SecondSide, &template);
    let pairs = templated.clone().unwrap_or_else(|_| Pairs::translation(source, Direction::Both));
    write(Records::Pairs(&pairs), &golden_tokenizer(ControlTokens::Text)?, true)?;
    templated.map(|_| ()).map_err(Error::user)
}

/// `chat.jsonl`, with `tokenizer_config.json` and `chat_template.jinja` beside `tokenizer.json`.
pub fn chats() -> Result<()> {
    let tokenizer = Tokenizer::open_with(Path::new("tokenizer.json"), ControlTokens::Chat)?;
    let inputs = Inputs { paths: vec!["chat.jsonl".into()], format: Some(Format::JsonLines), key: "messages".into() };
    let chats = Chats::open(inputs, &tokenizer)?;
    let skipping = write(Records::Chats(&chats), &tokenizer, true);
    write(Records::Chats(&chats), &tokenizer, false).and(skipping)
}

/// A tokenizer's file, alone and with `tokenizer_config.json` and `special_tokens_map.json` beside it.
pub fn tokenizer() -> Result<()> {
    let path = ["tokenizer.model", "tokenizer.json"].map(Path::new).into_iter().find(|path| path.exists());
    let path = path.expect("every seed has one");
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let _ = (Identity::of(&bytes), PieceBytes::of(&bytes));
    let all = [ControlTokens::AsInPython, ControlTokens::Text, ControlTokens::Parsed, ControlTokens::Chat];
    all.into_iter().try_for_each(|controls| encode(&Tokenizer::open_with(path, controls)?))
}

fn encode(tokenizer: &Tokenizer) -> Result<()> {
    let _ = (tokenizer.bos(), tokenizer.eos(), tokenizer.fingerprint()?);
    for text in SAMPLES {
        // A tokenizer without some bytes refuses a text.
        let Ok(ids) = tokenizer.encode(text) else { continue };
        if let Ok(spans) = tokenizer.encode_spans(text) {
            assert_eq!(spans.ids, ids, "ids with their places in {text:?}");
            let inside = spans.bytes.iter().all(|bytes| bytes.start <= bytes.end && bytes.end <= text.len());
            assert!(inside, "places {:?} in {text:?}", spans.bytes);
        }
        assert_eq!(tokenizer.encode_long(text).ok(), Some(ids.clone()), "ids in parts of {text:?}");
        let _ = (tokenizer.decode(&ids), tokenizer.cut(text.as_bytes()));
    }
    for id in [0, 1, tokenizer.vocab_size() as u32, u32::MAX] {
        let _ = (tokenizer.piece(id), tokenizer.decode(&[id]), tokenizer.decode_with_controls(&[id]));
    }
    Ok(())
}

/// The tokenizer in `base`, expanded by the one in `add`.
pub fn expand() -> Result<()> {
    let [base, add, output] = ["base", "add", "out"].map(Path::new);
    append(&Expand { base, add, output, multiple_of: 8, nfkc: false }, |_| Ok(()))?;
    Extension::open(base, output).map(|_| ())
}

fn golden_tokenizer(controls: ControlTokens) -> Result<Tokenizer> {
    Tokenizer::open_with(&root().join("../golden/tokenizers/tokenizer.json"), controls)
}

/// All files of the case, in the order of their names.
fn files_of_texts() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(".").expect("the folder of the case").flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.file_name().into()).collect();
    paths.sort();
    paths
}

/// Tokenizes, and checks what was written.
fn write(records: Records, tokenizer: &Tokenizer, skip_bad: bool) -> Result<()> {
    let output = PathBuf::from(format!("tokens-{skip_bad}"));
    tokenize(&Job { records, output: output.clone(), tokenizer, bos: None, eos: None, skip_bad, workers: 2 }, |_| ())?;
    let report = check(&output, Limits { vocab_size: Some(tokenizer.vocab_size() as u64) })?;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    Ok(())
}
