//! Reads Megatron's indexed token files: `PREFIX.bin` holds the tokens back to back, `PREFIX.idx` where each sequence
//! lies (megatron/core/datasets/indexed_dataset.py).
//!
//! ```text
//! 0   b"MMIDIDX\0\0", u64 version = 1, u8 dtype code, u64 S sequences, u64 D = documents + 1
//! 34  i32[S] lengths in tokens, i64[S] byte offsets in .bin, i64[D] first sequence of each document, then S
//! ```
//!
//! Both files are mapped, never copied. The arrays of the `.idx` start at byte 34, so they are not aligned and every
//! number is read as bytes. Opening checks only the header, the sizes and the last document index, so it takes the same
//! time for any corpus; the content of the arrays is checked where it is used, and all of it by [`super::check`].

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::mask::Mask;
use super::meta::Meta;
use super::partial::with_suffix;
use engine::error::{Error, Result};

pub(super) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
pub(super) const HEADER: usize = 34;

/// The integer type of the stored tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    U8,
    I8,
    I16,
    I32,
    I64,
    U16,
}

impl TokenKind {
    /// The type that Megatron's `DType.optimal_dtype` chooses.
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size < 65500 { TokenKind::U16 } else { TokenKind::I32 }
    }

    pub fn code(self) -> u8 {
        match self {
            TokenKind::U8 => 1,
            TokenKind::I8 => 2,
            TokenKind::I16 => 3,
            TokenKind::I32 => 4,
            TokenKind::I64 => 5,
            TokenKind::U16 => 8,
        }
    }

    /// Bytes of a token.
    pub fn size(self) -> usize {
        match self {
            TokenKind::U8 | TokenKind::I8 => 1,
            TokenKind::I16 | TokenKind::U16 => 2,
            TokenKind::I32 => 4,
            TokenKind::I64 => 8,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            TokenKind::U8 => "u8",
            TokenKind::I8 => "i8",
            TokenKind::I16 => "i16",
            TokenKind::I32 => "i32",
            TokenKind::I64 => "i64",
            TokenKind::U16 => "u16",
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        use TokenKind::{I8, I16, I32, I64, U8, U16};
        [U8, I8, I16, I32, I64, U16].into_iter().find(|kind| kind.code() == code)
    }

    /// The tokens in `bytes`, whose length is a multiple of [`Self::size`].
    pub fn tokens(self, bytes: &[u8]) -> impl Iterator<Item = i64> {
        bytes.chunks_exact(self.size()).map(move |b| match self {
            TokenKind::U8 => i64::from(b[0]),
            TokenKind::I8 => i64::from(b[0] as i8),
            TokenKind::I16 => i64::from(i16::from_le_bytes([b[0], b[1]])),
            TokenKind::U16 => i64::from(u16::from_le_bytes([b[0], b[1]])),
            TokenKind::I32 => i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            TokenKind::I64 => i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        })
    }
}

/// One pair of files, mapped. A "sequence" is what the engine calls a document: Megatron's sample order and
/// splits count sequences too.
pub struct IndexedFile {
    prefix: PathBuf,
    bin: Mmap,
    idx: Mmap,
    kind: TokenKind,
    sequences: usize,
    documents: usize,
    meta: Option<Meta>,
    mask: Option<Mask>,
}

impl IndexedFile {
    /// Opens `PREFIX.bin`, `PREFIX.idx` and, if they are there, `PREFIX.meta.json` and `PREFIX.mask.bin`; the prefix
    /// may also be given as the name of one of the first two.
    pub fn open(prefix: &Path) -> Result<Self> {
        let prefix = match prefix.extension().and_then(|e| e.to_str()) {
            Some("bin" | "idx") => prefix.with_extension(""),
            _ => prefix.to_path_buf(),
        };
        let idx = map(&with_suffix(&prefix, "idx"))?;
        let bin = map(&with_suffix(&prefix, "bin"))?;
        let (kind, sequences, documents) = header(&idx, &with_suffix(&prefix, "idx"))?;
        let meta = Meta::read(&prefix)?;
        let mut file = Self { prefix, bin, idx, kind, sequences, documents, meta, mask: None };
        file.check_ends()?;
        file.mask = Mask::open(&file.prefix, file.meta.as_ref(), file.bin.len() / kind.size())?;
        Ok(file)
    }

    /// Checks both ends of the document array, which costs nothing.
    fn check_ends(&self) -> Result<()> {
        let (first, last) = (self.document_start(0), self.document_start(self.documents));
        if first != 0 || last != self.sequences as i64 {
            return Err(Error::user(format!(
                "{}: the document index goes from {first} to {last} but should go from 0 to the {} sequences: \
                 the file is damaged or incomplete; tokenize the text again",
                self.idx_path().display(),
                self.sequences
            )));
        }
        if !self.bin.len().is_multiple_of(self.kind.size()) {
            return Err(Error::user(format!(
                "{}: {} bytes are no whole number of {} tokens: the file is truncated; tokenize the text again",
                self.bin_path().display(),
                self.bin.len(),
                self.kind.name()
            )));
        }
        Ok(())
    }

    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    pub fn bin_path(&self) -> PathBuf {
        with_suffix(&self.prefix, "bin")
    }

    pub fn idx_path(&self) -> PathBuf {
        with_suffix(&self.prefix, "idx")
    }

    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Documents in Megatron's sense: runs of sequences.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// All bytes of the `.bin`.
    pub fn bin(&self) -> &[u8] {
        &self.bin
    }

    /// The content of `PREFIX.meta.json`, if there is one.
    pub fn meta(&self) -> Option<&Meta> {
        self.meta.as_ref()
    }

    /// Which tokens count in the loss; `None`: all.
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// All bytes of the `.idx`.
    pub fn idx(&self) -> &[u8] {
        &self.idx
    }

    /// The length of sequence `i` in tokens, as stored: negative in a damaged file.
    pub fn stored_length(&self, i: usize) -> i32 {
        let at = HEADER + 4 * i;
        i32::from_le_bytes(self.idx[at..at + 4].try_into().expect("four bytes"))
    }

    /// The byte offset of sequence `i` in the `.bin`, as stored.
    pub fn stored_pointer(&self, i: usize) -> i64 {
        self.i64_at(HEADER + 4 * self.sequences + 8 * i)
    }

    /// The first sequence of document `i`; `i == documents()` gives the number of sequences.
    pub fn document_start(&self, i: usize) -> i64 {
        self.i64_at(HEADER + 12 * self.sequences + 8 * i)
    }

    fn i64_at(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.idx[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Tokens of sequence `i`; a negative length, which [`Self::tokens`] refuses, counts as none.
    pub fn length(&self, i: usize) -> u64 {
        self.stored_length(i).max(0) as u64
    }

    /// The number of tokens. Passes over all lengths and pointers and refuses a damaged pair.
    pub fn tokens(&self) -> Result<u64> {
        let lengths = &self.idx[HEADER..HEADER + 4 * self.sequences];
        let length = |b: &[u8]| i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let (sum, all) =
            lengths.chunks_exact(4).fold((0i64, 0i32), |(s, all), b| (s + i64::from(length(b)), all | length(b)));
        if all < 0 {
            let i = (0..self.sequences).find(|&i| self.stored_length(i) < 0).expect("one of them is negative");
            return Err(self.damaged(i, &format!("a length of {} tokens", self.stored_length(i))));
        }
        if sum as u64 > (self.bin.len() / self.kind.size()) as u64 {
            return Err(Error::user(format!(
                "{}: holds {} {} tokens but its .idx counts {sum}: the file is truncated; tokenize the text again",
                self.bin_path().display(),
                self.bin.len() / self.kind.size(),
                self.kind.name()
            )));
        }
        // A pointer outside the file is refused before the first step, not when its sample comes up.
        (0..self.sequences).try_for_each(|i| self.bytes(i).map(drop))?;
        Ok(sum as u64)
    }

    /// The bytes of sequence `i`.
    pub fn bytes(&self, i: usize) -> Result<&[u8]> {
        let (length, pointer) = (self.stored_length(i), self.stored_pointer(i));
        let at = usize::try_from(pointer).ok().filter(|at| at.is_multiple_of(self.kind.size()));
        let range = usize::try_from(length).ok().zip(at);
        let range = range.and_then(|(n, at)| Some(at..at.checked_add(n * self.kind.size())?));
        range.and_then(|r| self.bin.get(r)).ok_or_else(|| {
            self.damaged(i, &format!("{length} tokens at byte {pointer} of a .bin of {} bytes", self.bin.len()))
        })
    }

    /// Appends tokens `offset .. offset + count` of sequence `i` to `out`.
    pub fn read(&self, i: usize, offset: u64, count: usize, out: &mut Vec<u32>) -> Result<()> {
        let bytes = self.bytes(i)?;
        let size = self.kind.size();
        let part = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset * size..)?.get(..count * size));
        let part = part.ok_or_else(|| self.changed())?;
        for (k, id) in self.kind.tokens(part).enumerate() {
            out.push(u32::try_from(id).map_err(|_| {
                self.damaged(i, &format!("the id {id} at token {}, which is in no vocabulary", offset + k as u64))
            })?);
        }
        Ok(())
    }

    /// Appends the weights in the loss of tokens `offset .. offset + count` of sequence `i`, as targets, to `out`.
    pub fn read_weights(&self, i: usize, offset: u64, count: usize, out: &mut Vec<f32>) -> Result<()> {
        let Some(mask) = &self.mask else {
            out.resize(out.len() + count, 1.0);
            return Ok(());
        };
        let sequence = self.bytes(i)?;
        let end = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(count));
        if end.is_none_or(|end| end * self.kind.size() > sequence.len()) {
            return Err(self.changed());
        }
        mask.read(self.stored_pointer(i) as usize / self.kind.size() + offset as usize, count, out)
    }

    /// The error where the mapped files were written to after they were opened.
    pub(super) fn changed(&self) -> Error {
        Error::user(format!(
            "{}: its lengths have changed since the run began: another program wrote to the file; restore it, or \
             tokenize again (`swallow-engine data check {}` lists what is wrong), then start the run again: it \
             continues from the last checkpoint",
            self.idx_path().display(),
            self.prefix.display()
        ))
    }

    fn damaged(&self, i: usize, what: &str) -> Error {
        Error::user(format!(
            "{}: sequence {i} has {what}; see `swallow-engine data check {}`",
            self.idx_path().display(),
            self.prefix.display()
        ))
    }
}

pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
        return Err(Error::user(format!("{}: not a file", path.display())));
    }
    // SAFETY: the mapping is private to readers and token files are written under another name and renamed, so
    // nothing writes into or shortens a file under its final name while a run reads it.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))
}

/// Checks the header against the file's real size; returns dtype, sequences, documents.
fn header(idx: &[u8], path: &Path) -> Result<(TokenKind, usize, usize)> {
    let wrong = |what: String| Error::user(format!("{}: {what}", path.display()));
    if idx.len() < HEADER || &idx[..9] != MAGIC {
        return Err(wrong("not a Megatron .idx file (it does not begin with MMIDIDX and a header of 34 bytes)".into()));
    }
    let u64_at = |at: usize| u64::from_le_bytes(idx[at..at + 8].try_into().expect("eight bytes"));
    if u64_at(9) != 1 {
        return Err(wrong(format!("its version is {}; only version 1 is known", u64_at(9))));
    }
    let kind = TokenKind::of_code(idx[17])
        .ok_or_else(|| wrong(format!("dtype code {} is no integer type; 1, 2, 3, 4, 5 and 8 are", idx[17])))?;
    let (sequences, entries) = (u64_at(18), u64_at(26));
    let expected = HEADER as u128 + 12 * u128::from(sequences) + 8 * u128::from(entries);
    if entries == 0 || expected != idx.len() as u128 {
        let modes = if expected + u128::from(sequences) == idx.len() as u128 { " (a multimodal index?)" } else { "" };
        return Err(wrong(format!(
            "the file has {} bytes, but {sequences} sequences and {entries} document entries take {expected}{modes}: \
             it is truncated or damaged; tokenize the text again",
            idx.len()
        )));
    }
    Ok((kind, sequences as usize, entries as usize - 1))
}

#[cfg(test)]
mod tests;
