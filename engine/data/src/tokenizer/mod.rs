//! Text to ids and back: SentencePiece `.model` files (Google's own library) and Hugging Face `tokenizer.json`.
//! Neither adds BOS or EOS by itself here; callers add [`Tokenizer::bos`] and [`Tokenizer::eos`] where needed.

mod bigrams;
pub mod config;
mod controls;
mod convert;
mod cuts;
pub mod expand;
mod extension;
mod fragments;
mod hf;
mod identity;
mod library;
mod merges;
mod model;
mod nfkc;
mod piece_bytes;
mod spans;
mod spm;
pub mod train;

use std::path::{Path, PathBuf};

use super::budget::Budget;
use engine::error::{Error, Result};
pub use extension::Extension;
use fragments::Fragments;
pub use identity::Identity;
pub use piece_bytes::PieceBytes;
pub use spans::Spans;

/// Files above this are not read as a tokenizer.
const LARGEST: u64 = 1 << 30;

/// Bytes of a text that are encoded at a time, where it can be cut: few enough for the caches.
const SEGMENT: usize = 32 << 10;

/// The most bytes that are encoded as a whole, where the tokenizer allows no cut; also the most that all threads
/// together encode at a time. The libraries take up to 130 bytes of memory for each.
pub const LONGEST_UNCUT: usize = 16 << 20;

/// The names of a tokenizer's file in a Hugging Face folder, in the order in which they are tried.
const NAMES: [&str; 2] = ["tokenizer.model", "tokenizer.json"];

/// The id of a special token, or the reason why the tokenizer has none.
pub type Special = std::result::Result<u32, String>;

/// How a control token that a text spells out, such as `<|endoftext|>`, is encoded. Added tokens that are no control
/// tokens are found in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlTokens {
    /// Python's defaults: `tokenizers` returns the token's id, `sentencepiece` encodes its letters as text.
    AsInPython,
    /// Ids of its letters. A document cannot end itself.
    Text,
    /// Its id.
    Parsed,
    /// Its id, and everything else that `transformers` takes from the `tokenizer_config.json` beside the tokenizer.
    Chat,
}

/// A tokenizer of either kind; safe to share between threads.
pub struct Tokenizer {
    path: PathBuf,
    controls: ControlTokens,
    kind: Box<dyn Kind>,
    encoding: Budget,
}

/// The operations of both kinds of tokenizers. Their errors do not name the file.
trait Kind: Send + Sync {
    fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, String>;
    /// The ids of a later part of a text, which begins at a place that [`Kind::cut`] returned.
    fn encode_rest(&self, text: &str) -> std::result::Result<Vec<u32>, String>;
    /// The ids of [`Kind::encode`], each with its bytes of the text.
    fn encode_spans(&self, text: &str) -> std::result::Result<Spans, String>;
    fn decode(&self, ids: &[u32]) -> std::result::Result<String, String>;
    fn vocab_size(&self) -> usize;
    fn bos(&self) -> Special;
    fn eos(&self) -> Special;
    fn piece(&self, id: u32) -> Option<String>;
    fn id(&self, piece: &str) -> Option<u32>;
    /// The ids of the control tokens, ascending.
    fn controls(&self) -> &[u32];
    fn cut(&self, text: &[u8]) -> Option<usize>;
    /// Where texts may be cut into short parts that are encoded by [`Kind::encode_rest`], all but a text's first.
    fn fragments(&self) -> Option<&Fragments>;
}

impl Tokenizer {
    /// Opens a `.model` or `.json` file, or the one of them that a folder holds. An error in the file is
    /// reported as the user's mistake.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, ControlTokens::AsInPython)
    }

    /// Like [`Self::open`], for texts in which control tokens are read in another way.
    pub fn open_with(path: &Path, controls: ControlTokens) -> Result<Self> {
        if path.is_dir() {
            return Self::in_folder(path, controls);
        }
        let bytes = read(path)?;
        let kind = match is_json(&bytes) {
            true => hf::HuggingFace::open(path, &bytes, controls).map(|t| Box::new(t) as Box<dyn Kind>),
            false => spm::SentencePiece::open(path, &bytes, controls).map(|t| Box::new(t) as Box<dyn Kind>),
        };
        let kind = kind.map_err(|what| {
            let expected = match is_tiktoken(&bytes) {
                true => "this is tiktoken's format; give the tokenizer.json that belongs to it",
                false => "a SentencePiece .model or a Hugging Face tokenizer.json is expected",
            };
            Error::user(format!("{}: {what}; {expected}", path.display()))
        })?;
        Ok(Self { path: path.to_path_buf(), controls, kind, encoding: Budget::new(LONGEST_UNCUT) })
    }

    /// The tokenizer of a model's folder. One that cannot be opened is passed over where there is another, such as
    /// Llama 3's `tokenizer.model` in tiktoken's format beside its `tokenizer.json`. For chats the `tokenizer.json`
    /// comes first, as in `transformers`.
    fn in_folder(folder: &Path, controls: ControlTokens) -> Result<Self> {
        let mut files = NAMES.map(|name| folder.join(name));
        if controls == ControlTokens::Chat {
            files.reverse();
        }
        let open = |path: &PathBuf| Self::open_with(path, controls);
        let mut opened = files.iter().filter(|path| path.is_file()).map(open).peekable();
        if opened.peek().is_none() {
            let [model, json] = NAMES;
            return Err(Error::user(format!("{}: has no {model} and no {json}", folder.display())));
        }
        let mut wrong = Vec::new();
        for tokenizer in opened {
            match tokenizer {
                Ok(tokenizer) => return Ok(tokenizer),
                Err(e) => wrong.push(e.to_string()),
            }
        }
        Err(Error::user(wrong.join("; and ")))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How control tokens in texts are encoded, as `PREFIX.meta.json` records it; `None`: as in Python.
    pub fn reads_control_tokens(&self) -> Option<&'static str> {
        match self.controls {
            ControlTokens::AsInPython => None,
            ControlTokens::Text => Some("text"),
            ControlTokens::Parsed | ControlTokens::Chat => Some("parse"),
        }
    }

    /// The ids of a text, without BOS and EOS: those that Python's `sentencepiece` and `tokenizers` return.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.name_file(self.kind.encode(text))
    }

    /// The same ids as [`Self::encode`], faster and in bounded memory: the text is cut where that changes nothing, and
    /// refused where more than [`LONGEST_UNCUT`] bytes allow no cut.
    pub fn encode_long(&self, text: &str) -> Result<Vec<u32>> {
        let segment = self.segment(text, SEGMENT)?;
        // Only the first fragment may get the space that some tokenizers put before a text.
        let first = self.kind.fragments().map_or(segment, |fragments| fragments.end(&text[..segment], 0));
        let mut ids = {
            let _share = self.encoding.take(first);
            self.encode(&text[..first])?
        };
        self.extend(&mut ids, &text[first..], SEGMENT)?;
        Ok(ids)
    }

    /// [`Self::encode_long`] for the text after a [`Self::cut`].
    pub fn encode_long_rest(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.extend(&mut ids, text, SEGMENT)?;
        Ok(ids)
    }

    /// The ids of [`Self::encode`], each with its bytes of the text. The text is encoded as a whole, and refused above
    /// [`LONGEST_UNCUT`].
    pub fn encode_spans(&self, text: &str) -> Result<Spans> {
        if text.len() > LONGEST_UNCUT {
            let [all, most] = [text.len(), LONGEST_UNCUT].map(|bytes| bytes as f64 / f64::from(1 << 20));
            return Err(Error::user(format!(
                "a text of {all:.1} MiB, more than the {most} MiB that are encoded as a whole; split it"
            )));
        }
        let _share = self.encoding.take(text.len());
        self.name_file(self.kind.encode_spans(text))
    }

    fn extend(&self, ids: &mut Vec<u32>, mut text: &str, size: usize) -> Result<()> {
        while !text.is_empty() {
            let (part, rest) = text.split_at(self.segment(text, size)?);
            let _share = self.encoding.take(part.len());
            self.name_file(match self.kind.fragments() {
                Some(fragments) => fragments.encode(part, ids, |text| self.kind.encode_rest(text)),
                None => self.kind.encode_rest(part).map(|part| ids.extend(part)),
            })?;
            text = rest;
        }
        Ok(())
    }

    /// The length of the text's first part, about `size` bytes.
    fn segment(&self, text: &str, size: usize) -> Result<usize> {
        let end = match text.len() > 2 * size {
            true => self.cut_near(text.as_bytes(), size).unwrap_or(text.len()),
            false => text.len(),
        };
        if end > LONGEST_UNCUT {
            return Err(Error::user(uncut(text.len())));
        }
        Ok(end)
    }

    /// The last place where `text` may be cut without changing its ids, if there is one. A cut needs text
    /// after it, so the end of `text` is never one.
    pub fn cut(&self, text: &[u8]) -> Option<usize> {
        self.kind.cut(text)
    }

    /// A place to cut at or before `near`, else the first after it.
    fn cut_near(&self, text: &[u8], near: usize) -> Option<usize> {
        let mut end = near;
        while end < text.len() {
            if let Some(at) = self.cut(&text[..end]) {
                return Some(at);
            }
            end = (2 * end).min(text.len());
        }
        self.cut(text)
    }

    /// The text of ids; BOS, EOS and their like give no text. An id outside the vocabulary is the user's mistake.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocab_size()) {
            let size = self.vocab_size();
            return Err(Error::user(format!(
                "{}: the id {id} is outside its vocabulary of {size} pieces",
                self.path.display()
            )));
        }
        self.name_file(self.kind.decode(ids))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.kind.vocab_size()
    }

    /// A hash of the files that decide the ids: the tokenizer's, and those beside it that name its tokens.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&read(&self.path)?);
        for name in config::NAMES {
            let beside = std::fs::read(self.path.with_file_name(name)).unwrap_or_default();
            hasher.update(&(beside.len() as u64).to_le_bytes()).update(&beside);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The id of BOS, or why the tokenizer has none.
    pub fn bos(&self) -> Special {
        self.kind.bos()
    }

    /// The id of EOS, or why the tokenizer has none.
    pub fn eos(&self) -> Special {
        self.kind.eos()
    }

    /// The piece of an id, as the vocabulary spells it.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.kind.piece(id)
    }

    /// The id of a piece or of an added token, as the vocabulary spells it; the reason where there is none names the
    /// control tokens.
    pub fn id(&self, piece: &str) -> Special {
        const NAMED: usize = 12;
        self.kind.id(piece).ok_or_else(|| {
            let controls = self.kind.controls();
            let names: Vec<_> = controls.iter().take(NAMED).filter_map(|&id| self.kind.piece(id)).collect();
            let more = if controls.len() > NAMED { ", ..." } else { "" };
            format!("{} has no token {piece:?}; its control tokens are {}{more}", self.path.display(), names.join(", "))
        })
    }

    /// Whether an id is a control token's, such as BOS.
    pub fn is_control(&self, id: u32) -> bool {
        self.kind.controls().binary_search(&id).is_ok()
    }

    /// [`Self::decode`], with the control tokens as they are spelled.
    pub fn decode_with_controls(&self, ids: &[u32]) -> Result<String> {
        let mut text = String::new();
        for run in ids.chunk_by(|&a, &b| self.is_control(a) == self.is_control(b)) {
            match self.is_control(run[0]) {
                true => run.iter().filter_map(|&id| self.piece(id)).for_each(|piece| text += &piece),
                false => text += &self.decode(run)?,
            }
        }
        Ok(text)
    }

    /// Puts the file's name before an error.
    fn name_file<T>(&self, result: std::result::Result<T, String>) -> Result<T> {
        result.map_err(|what| Error::user(format!("{}: {what}", self.path.display())))
    }
}

/// The message for a text of so many bytes that cannot be encoded part by part.
pub(super) fn uncut(bytes: usize) -> String {
    let [all, most] = [bytes, LONGEST_UNCUT].map(|bytes| bytes as f64 / f64::from(1 << 20));
    format!(
        "a text of {all:.1} MiB in which this tokenizer allows no cut for more than {most} MiB, the most that is \
         encoded as a whole; split the document"
    )
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > LARGEST {
        return Err(Error::user(format!("{}: {size} bytes are too many for a tokenizer", path.display())));
    }
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

fn is_json(bytes: &[u8]) -> bool {
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
}

/// Whether the first line is a piece in Base64 and its rank.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().and_then(|line| std::str::from_utf8(line).ok());
    let base64 = |piece: &str| piece.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
    let parts = line.and_then(|line| line.trim_end().split_once(' '));
    parts.is_some_and(|(piece, rank)| !piece.is_empty() && base64(piece) && rank.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests;
