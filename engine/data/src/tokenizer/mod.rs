//! Text to ids and back: SentencePiece `.model` files (Google's own library) and Hugging Face `tokenizer.json`.
//! Neither adds BOS or EOS by itself here; who wants them asks for [`Tokenizer::bos`] and [`Tokenizer::eos`].

mod hf;
mod model;
mod spm;
pub mod train;

use std::path::{Path, PathBuf};

use engine::error::{Error, Result};

/// Files above this are not read as a tokenizer.
const LARGEST: u64 = 1 << 30;

/// Bytes of a text that are encoded at a time, where it can be cut: few enough for the caches.
const SEGMENT: usize = 32 << 10;

/// A tokenizer of either kind; safe to share between threads.
pub struct Tokenizer {
    path: PathBuf,
    kind: Box<dyn Kind>,
}

/// What both kinds can do.
trait Kind: Send + Sync {
    fn encode(&self, text: &str) -> std::result::Result<Vec<u32>, String>;
    /// The ids of a text's further part, cut off at a place that [`Kind::cut`] gave.
    fn encode_rest(&self, text: &str) -> std::result::Result<Vec<u32>, String>;
    fn decode(&self, ids: &[u32]) -> std::result::Result<String, String>;
    fn vocab_size(&self) -> usize;
    fn bos(&self) -> Option<u32>;
    fn eos(&self) -> Option<u32>;
    fn piece(&self, id: u32) -> Option<String>;
    fn cut(&self, text: &[u8]) -> Option<usize>;
}

impl Tokenizer {
    /// Opens a `.model` or `.json` file. What is wrong with the file is the user's mistake, with the place.
    pub fn open(path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
        if size > LARGEST {
            return Err(Error::user(format!("{}: {size} bytes are too many for a tokenizer", path.display())));
        }
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let kind = match json {
            true => hf::HuggingFace::open(path, &bytes).map(|t| Box::new(t) as Box<dyn Kind>),
            false => spm::SentencePiece::open(&bytes).map(|t| Box::new(t) as Box<dyn Kind>),
        };
        let kind = kind.map_err(|what| {
            let expected = "a SentencePiece .model or a Hugging Face tokenizer.json is expected";
            Error::user(format!("{}: {what}; {expected}", path.display()))
        })?;
        Ok(Self { path: path.to_path_buf(), kind })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of a text, without BOS and EOS: what Python's `sentencepiece` and `tokenizers` give.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.said(self.kind.encode(text))
    }

    /// The same ids as [`Self::encode`], faster and in less memory: the text is cut where that changes nothing.
    pub fn encode_long(&self, text: &str) -> Result<Vec<u32>> {
        let first = self.segment(text, SEGMENT);
        let mut ids = self.encode(&text[..first])?;
        self.extend(&mut ids, &text[first..], SEGMENT)?;
        Ok(ids)
    }

    /// As [`Self::encode_long`] for what follows a [`Self::cut`].
    pub fn encode_long_rest(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.extend(&mut ids, text, SEGMENT)?;
        Ok(ids)
    }

    fn extend(&self, ids: &mut Vec<u32>, mut text: &str, size: usize) -> Result<()> {
        while !text.is_empty() {
            let (part, rest) = text.split_at(self.segment(text, size));
            ids.extend(self.encode_rest(part)?);
            text = rest;
        }
        Ok(())
    }

    /// Where the text's first part of about `size` bytes ends.
    fn segment(&self, text: &str, size: usize) -> usize {
        match text.len() > 2 * size {
            true => self.cut_near(text.as_bytes(), size).unwrap_or(text.len()),
            false => text.len(),
        }
    }

    /// The ids of what follows a [`Self::cut`].
    fn encode_rest(&self, text: &str) -> Result<Vec<u32>> {
        self.said(self.kind.encode_rest(text))
    }

    /// The last place where `text` may be cut without changing its ids, if there is one. A place past which the
    /// text goes on is needed, so the end of `text` is never one.
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
            return Err(Error::user(format!("{}: the id {id} is outside its {size} pieces", self.path.display())));
        }
        self.said(self.kind.decode(ids))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.kind.vocab_size()
    }

    pub fn bos(&self) -> Option<u32> {
        self.kind.bos()
    }

    pub fn eos(&self) -> Option<u32> {
        self.kind.eos()
    }

    /// How the vocabulary spells an id.
    pub fn piece(&self, id: u32) -> Option<String> {
        self.kind.piece(id)
    }

    fn said<T>(&self, result: std::result::Result<T, String>) -> Result<T> {
        result.map_err(|what| Error::user(format!("{}: {what}", self.path.display())))
    }
}

#[cfg(test)]
mod tests;
