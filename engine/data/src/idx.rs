//! Reads Megatron's indexed token files: `PREFIX.bin` holds the tokens back to back, `PREFIX.idx` where each sequence
//! lies (megatron/core/datasets/indexed_dataset.py).
//!
//! ```text
//! 0   b"MMIDIDX\0\0", u64 version = 1, u8 dtype code, u64 S sequences, u64 D = documents + 1
//! 34  i32[S] lengths in tokens, i64[S] byte offsets in .bin, i64[D] first sequence of each document, then S
//! ```
//!
//! Both files are read at positions ([`super::data_file`]), and neither is held in memory. Opening checks only the
//! header, the sizes and both ends of the document array, so it takes the same time for any corpus; the content of the
//! arrays is checked where it is used, and all of it by [`super::check`].

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::data_file::{DataFile, blocks, changed};
use super::mask::Mask;
use super::meta::Meta;
use super::partial::with_suffix;
use engine::error::{Error, Result};

pub(super) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
pub(super) const HEADER: usize = 34;

/// Sequences whose entries are read at a time: 3 MiB.
const ENTRIES: u64 = 1 << 18;

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

/// A sequence's length in tokens and its byte offset in the `.bin`, as stored: negative in a damaged file.
pub type Stored = (i32, i64);

/// One pair of files. A "sequence" is what the engine calls a document: Megatron's sample order and splits count
/// sequences too.
pub struct IndexedFile {
    prefix: PathBuf,
    bin: DataFile,
    idx: DataFile,
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
        let idx = DataFile::open(&with_suffix(&prefix, "idx"))?;
        let bin = DataFile::open(&with_suffix(&prefix, "bin"))?;
        let (kind, sequences, documents) = header(&idx)?;
        let meta = Meta::read(&prefix)?;
        let mut file = Self { prefix, bin, idx, kind, sequences, documents, meta, mask: None };
        file.check_ends()?;
        file.mask = Mask::open(&file.prefix, file.meta.as_ref(), file.stored_tokens())?;
        Ok(file)
    }

    /// Checks both ends of the document array, which costs nothing.
    fn check_ends(&self) -> Result<()> {
        let (first, last) = (self.document_start(0)?, self.document_start(self.documents)?);
        if first != 0 || last != self.sequences as i64 {
            return Err(Error::user(format!(
                "{}: the document index goes from {first} to {last} but should go from 0 to the {} sequences: \
                 the file is damaged or incomplete; tokenize the text again",
                self.idx.path().display(),
                self.sequences
            )));
        }
        if !self.bin.bytes().is_multiple_of(self.kind.size() as u64) {
            return Err(Error::user(format!(
                "{}: {} bytes are no whole number of {} tokens: the file is truncated; tokenize the text again",
                self.bin.path().display(),
                self.bin.bytes(),
                self.kind.name()
            )));
        }
        Ok(())
    }

    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    pub fn bin(&self) -> &DataFile {
        &self.bin
    }

    pub fn idx(&self) -> &DataFile {
        &self.idx
    }

    /// The `.bin`, the `.idx` and, if there is one, the mask.
    pub fn files(&self) -> impl Iterator<Item = &DataFile> {
        [&self.bin, &self.idx].into_iter().chain(self.mask.as_ref().map(Mask::file))
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

    /// The number of tokens that the `.bin` has room for.
    pub fn stored_tokens(&self) -> u64 {
        self.bin.bytes() / self.kind.size() as u64
    }

    /// The content of `PREFIX.meta.json`, if there is one.
    pub fn meta(&self) -> Option<&Meta> {
        self.meta.as_ref()
    }

    /// Which tokens count in the loss; `None`: all.
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// The entry of sequence `i`.
    pub fn stored(&self, i: usize) -> Result<Stored> {
        let length = self.idx.array((HEADER + 4 * i) as u64)?;
        Ok((i32::from_le_bytes(length), self.stored_pointer(i)?))
    }

    /// Every sequence with its entry, in blocks.
    pub fn all_stored(&self) -> impl Iterator<Item = Result<Vec<(usize, Stored)>>> {
        let pointers = (HEADER + 4 * self.sequences) as u64;
        blocks(0..self.sequences as u64, ENTRIES).map(move |Range { start, end }| {
            let lengths = self.idx.range(HEADER as u64 + 4 * start..HEADER as u64 + 4 * end)?;
            let pointers = self.idx.range(pointers + 8 * start..pointers + 8 * end)?;
            let (lengths, pointers) = (lengths.as_chunks().0.iter(), pointers.as_chunks().0.iter());
            let entries = lengths.zip(pointers).map(|(&l, &p)| (i32::from_le_bytes(l), i64::from_le_bytes(p)));
            Ok((start as usize..).zip(entries).collect())
        })
    }

    /// The byte offset of sequence `i` in the `.bin`, as stored.
    pub fn stored_pointer(&self, i: usize) -> Result<i64> {
        self.idx.array((HEADER + 4 * self.sequences + 8 * i) as u64).map(i64::from_le_bytes)
    }

    /// The first sequence of document `i`; `i == documents()` gives the number of sequences.
    pub fn document_start(&self, i: usize) -> Result<i64> {
        self.idx.array((HEADER + 12 * self.sequences + 8 * i) as u64).map(i64::from_le_bytes)
    }

    /// Tokens of sequence `i`; a negative length, which [`Self::lengths`] refuses, counts as none.
    pub fn length(&self, i: usize) -> Result<u64> {
        let length = self.idx.array((HEADER + 4 * i) as u64).map(i32::from_le_bytes)?;
        Ok(length.max(0) as u64)
    }

    /// The number of tokens. Refuses a damaged pair.
    pub fn tokens(&self) -> Result<u64> {
        Ok(self.lengths()?.into_iter().map(u64::from).sum())
    }

    /// Tokens of every sequence. Passes over all lengths and pointers and refuses a damaged pair.
    pub fn lengths(&self) -> Result<Vec<u32>> {
        let (mut lengths, mut outside) = (Vec::with_capacity(self.sequences), None);
        for block in self.all_stored() {
            for (i, (length, pointer)) in block? {
                let tokens = u32::try_from(length);
                lengths.push(tokens.map_err(|_| self.damaged(i, &format!("a length of {length} tokens")))?);
                outside = outside.or_else(|| self.bytes_of(length, pointer).is_none().then_some((i, length, pointer)));
            }
        }
        let sum: u64 = lengths.iter().copied().map(u64::from).sum();
        if sum > self.stored_tokens() {
            return Err(Error::user(format!(
                "{}: holds {} {} tokens but its .idx counts {sum}: the file is truncated; tokenize the text again",
                self.bin.path().display(),
                self.stored_tokens(),
                self.kind.name()
            )));
        }
        // A pointer outside the file is refused before the first step, not when its sample comes up.
        outside.map_or(Ok(lengths), |(i, length, pointer)| Err(self.outside(i, length, pointer)))
    }

    /// The bytes of sequence `i` in the `.bin`.
    pub fn bytes(&self, i: usize) -> Result<Range<u64>> {
        let (length, pointer) = self.stored(i)?;
        self.bytes_of(length, pointer).ok_or_else(|| self.outside(i, length, pointer))
    }

    /// The bytes of a sequence of this length at this pointer; `None` where they do not lie in the `.bin`.
    pub fn bytes_of(&self, length: i32, pointer: i64) -> Option<Range<u64>> {
        let size = self.kind.size() as u64;
        let at = u64::try_from(pointer).ok().filter(|at| at.is_multiple_of(size))?;
        let end = at.checked_add(u64::try_from(length).ok()? * size)?;
        (end <= self.bin.bytes()).then_some(at..end)
    }

    /// Appends tokens `offset .. offset + count` of sequence `i` to `out`.
    pub fn read(&self, i: usize, offset: u64, count: usize, out: &mut Vec<u32>) -> Result<()> {
        let bytes = self.bin.range(self.part(i, offset, count)?)?;
        for (k, id) in self.kind.tokens(&bytes).enumerate() {
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
        mask.read(self.part(i, offset, count)?.start / self.kind.size() as u64, count, out)
    }

    /// The bytes of tokens `offset .. offset + count` of sequence `i`.
    fn part(&self, i: usize, offset: u64, count: usize) -> Result<Range<u64>> {
        let (sequence, size) = (self.bytes(i)?, self.kind.size() as u64);
        let end = offset.checked_add(count as u64).and_then(|end| end.checked_mul(size)?.checked_add(sequence.start));
        match end.filter(|&end| end <= sequence.end) {
            Some(end) => Ok(sequence.start + offset * size..end),
            None => Err(self.changed()),
        }
    }

    /// The error where the lengths of the `.idx` are not those that the order of the samples was made for.
    pub(super) fn changed(&self) -> Error {
        changed(self.idx.path(), "its lengths have changed since the run began")
    }

    fn outside(&self, i: usize, length: i32, pointer: i64) -> Error {
        self.damaged(i, &format!("{length} tokens at byte {pointer} of a .bin of {} bytes", self.bin.bytes()))
    }

    fn damaged(&self, i: usize, what: &str) -> Error {
        Error::user(format!(
            "{}: sequence {i} has {what}; see `swallow-engine data check {}`",
            self.idx.path().display(),
            self.prefix.display()
        ))
    }
}

/// Checks the header against the file's real size; returns dtype, sequences, documents.
fn header(idx: &DataFile) -> Result<(TokenKind, usize, usize)> {
    let wrong = |what: String| Error::user(format!("{}: {what}", idx.path().display()));
    let bytes: [u8; HEADER] = if idx.bytes() < HEADER as u64 { [0; HEADER] } else { idx.array(0)? };
    if &bytes[..9] != MAGIC {
        return Err(wrong("not a Megatron .idx file (it does not begin with MMIDIDX and a header of 34 bytes)".into()));
    }
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    if u64_at(9) != 1 {
        return Err(wrong(format!("its version is {}; only version 1 is known", u64_at(9))));
    }
    let kind = TokenKind::of_code(bytes[17])
        .ok_or_else(|| wrong(format!("dtype code {} is no integer type; 1, 2, 3, 4, 5 and 8 are", bytes[17])))?;
    let (sequences, entries) = (u64_at(18), u64_at(26));
    let expected = HEADER as u128 + 12 * u128::from(sequences) + 8 * u128::from(entries);
    if entries == 0 || expected != u128::from(idx.bytes()) {
        let with_modes = expected + u128::from(sequences);
        let modes = if with_modes == u128::from(idx.bytes()) { " (a multimodal index?)" } else { "" };
        return Err(wrong(format!(
            "the file has {} bytes, but {sequences} sequences and {entries} document entries take {expected}{modes}: \
             it is truncated or damaged; tokenize the text again",
            idx.bytes()
        )));
    }
    Ok((kind, sequences as usize, entries as usize - 1))
}

#[cfg(test)]
mod tests;
