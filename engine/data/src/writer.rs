//! Writes Megatron's indexed token files, and beside them `PREFIX.mask.bin`, one byte a token, where only some tokens
//! count in the loss. Tokens are written to a file with a temporary name; only the lengths stay in memory (four bytes a
//! sequence). The files appear whole or not at all: the `.bin` is renamed first, and last the `.idx`, without which
//! nothing reads the others.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::idx::{HEADER, MAGIC, TokenKind};
use super::meta::Meta;
use super::partial::{PartialFile, sync_folder_of, with_suffix};
use engine::error::{Error, Result};

/// The suffix of the file with the mask.
pub const MASK: &str = "mask.bin";

/// Writes one sequence per document.
pub struct IndexWriter {
    prefix: PathBuf,
    bin: BufWriter<PartialFile>,
    /// For every token 1 if it counts in the loss as a target, else 0.
    mask: Option<BufWriter<PartialFile>>,
    kind: TokenKind,
    lengths: Vec<i32>,
    /// Tokens of the documents that have ended.
    ended: u64,
    /// Tokens of the document that is being written.
    open: u64,
}

/// The counts that [`IndexWriter::finish`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub documents: u64,
    pub tokens: u64,
}

impl IndexWriter {
    /// Starts `PREFIX.bin.partial`, making the folder where it is missing. Refused where another process writes
    /// the same prefix.
    pub fn create(prefix: &Path, kind: TokenKind) -> Result<Self> {
        let is_folder = prefix.as_os_str().as_encoded_bytes().ends_with(b"/") || prefix.is_dir();
        if is_folder || prefix.file_name().is_none() {
            return Err(Error::user(format!("{}: a prefix needs a file name, such as data/corpus", prefix.display())));
        }
        let bin = buffered(prefix, "bin")?;
        Ok(Self { prefix: prefix.to_path_buf(), bin, mask: None, kind, lengths: Vec::new(), ended: 0, open: 0 })
    }

    /// Like [`Self::create`], with a mask; tokens are appended by [`Self::push_masked`].
    pub fn create_masked(prefix: &Path, kind: TokenKind) -> Result<Self> {
        let mut writer = Self::create(prefix, kind)?;
        writer.mask = Some(buffered(prefix, MASK)?);
        Ok(writer)
    }

    /// Appends tokens to the document that is being written, and for each 1 if it counts as a target, else 0.
    pub fn push_masked(&mut self, ids: &[u32], mask: &[u8]) -> Result<()> {
        assert_eq!(ids.len(), mask.len(), "tokens and the bytes of their mask");
        assert!(mask.iter().all(|&byte| byte <= 1), "a mask holds 0 and 1");
        let out = self.mask.as_mut().expect("created with a mask");
        out.write_all(mask).map_err(|e| out.get_ref().error(e))?;
        self.push_ids(ids)
    }

    /// Appends tokens to the document that is being written. Every id must fit the kind of the file.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        assert!(self.mask.is_none(), "a file with a mask needs one for every token");
        self.push_ids(ids)
    }

    fn push_ids(&mut self, ids: &[u32]) -> Result<()> {
        let wrote = match self.kind {
            TokenKind::U16 => write_all(&mut self.bin, ids, |id| u16::try_from(id).ok().map(u16::to_le_bytes)),
            TokenKind::I32 => write_all(&mut self.bin, ids, |id| i32::try_from(id).ok().map(i32::to_le_bytes)),
            other => panic!("token files are written as u16 or i32, not {}", other.name()),
        };
        wrote.map_err(|e| self.bin.get_ref().error(e))?;
        self.open += ids.len() as u64;
        Ok(())
    }

    /// Closes the document and returns its tokens.
    pub fn end_document(&mut self) -> Result<u64> {
        let length = i32::try_from(self.open).map_err(|_| {
            Error::user(format!(
                "{}: document {} has {} tokens, but the format allows {}; split the document",
                self.prefix.display(),
                self.lengths.len(),
                self.open,
                i32::MAX
            ))
        })?;
        self.lengths.push(length);
        self.ended += self.open;
        Ok(std::mem::take(&mut self.open))
    }

    /// Takes back the tokens of the document that is being written.
    pub fn discard_document(&mut self) -> Result<()> {
        if self.open == 0 {
            return Ok(());
        }
        self.open = 0;
        if let Some(mask) = &mut self.mask {
            truncate(mask, self.ended)?;
        }
        truncate(&mut self.bin, self.ended * self.kind.size() as u64)
    }

    /// Flushes all files and gives them their names. An older `PREFIX.meta.json` or `PREFIX.mask.bin`, which would
    /// describe other tokens, is removed.
    pub fn finish(self) -> Result<Written> {
        self.close(None)
    }

    /// Like [`Self::finish`], with a `PREFIX.meta.json`.
    pub fn finish_with(self, meta: &Meta) -> Result<Written> {
        self.close(Some(meta))
    }

    fn close(self, meta: Option<&Meta>) -> Result<Written> {
        assert_eq!(self.open, 0, "tokens of a document that was not ended");
        assert!(self.mask.is_none() || meta.is_some_and(|meta| meta.mask), "a mask is noted in PREFIX.meta.json");
        let [idx, meta_path, mask_path] = ["idx", "meta.json", MASK].map(|suffix| with_suffix(&self.prefix, suffix));
        let new_idx = self.write_idx(PartialFile::create(&idx)?)?;
        let new_meta = meta.map(|meta| write_meta(meta, PartialFile::create(&meta_path)?)).transpose()?;
        let bin = finished(self.bin)?;
        let new_mask = self.mask.map(finished).transpose()?;
        // An older .idx must never stand beside the newer .bin.
        remove(&idx)?;
        bin.rename()?;
        match new_mask {
            Some(new_mask) => new_mask.rename()?,
            None => remove(&mask_path)?,
        }
        match new_meta {
            Some(new_meta) => new_meta.rename()?,
            None => remove(&meta_path)?,
        }
        new_idx.rename()?;
        sync_folder_of(&self.prefix)?;
        Ok(Written { documents: self.lengths.len() as u64, tokens: self.ended })
    }

    fn write_idx(&self, file: PartialFile) -> Result<PartialFile> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let written = self.write_numbers(&mut out);
        written.map_err(|e| out.get_ref().error(e))?;
        finished(out)
    }

    fn write_numbers(&self, out: &mut impl Write) -> std::io::Result<()> {
        let sequences = self.lengths.len() as u64;
        out.write_all(MAGIC)?;
        out.write_all(&1u64.to_le_bytes())?;
        out.write_all(&[self.kind.code()])?;
        out.write_all(&sequences.to_le_bytes())?;
        out.write_all(&(sequences + 1).to_le_bytes())?;
        debug_assert_eq!(9 + 8 + 1 + 8 + 8, HEADER);
        for length in &self.lengths {
            out.write_all(&length.to_le_bytes())?;
        }
        let mut pointer = 0i64;
        for &length in &self.lengths {
            out.write_all(&pointer.to_le_bytes())?;
            pointer += i64::from(length) * self.kind.size() as i64;
        }
        (0..=sequences).try_for_each(|document| out.write_all(&document.to_le_bytes()))
    }
}

/// A file `PREFIX.suffix.partial` that is written in large parts.
fn buffered(prefix: &Path, suffix: &str) -> Result<BufWriter<PartialFile>> {
    Ok(BufWriter::with_capacity(1 << 20, PartialFile::create(&with_suffix(prefix, suffix))?))
}

fn truncate(out: &mut BufWriter<PartialFile>, len: u64) -> Result<()> {
    out.flush().map_err(|e| out.get_ref().error(e))?;
    out.get_mut().truncate(len)
}

/// The file, with all its bytes on the disk.
fn finished(mut out: BufWriter<PartialFile>) -> Result<PartialFile> {
    out.flush().map_err(|e| out.get_ref().error(e))?;
    out.get_ref().sync()?;
    Ok(out.into_inner().unwrap_or_else(|_| unreachable!("the buffer was flushed")))
}

fn write_meta(meta: &Meta, mut file: PartialFile) -> Result<PartialFile> {
    file.write_all(meta.to_json().as_bytes()).map_err(|e| file.error(e))?;
    file.sync()?;
    Ok(file)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

fn write_all<const SIZE: usize>(
    out: &mut impl Write,
    ids: &[u32],
    bytes: impl Fn(u32) -> Option<[u8; SIZE]>,
) -> std::io::Result<()> {
    for &id in ids {
        let token = bytes(id).unwrap_or_else(|| panic!("id {id} does not fit a token of {SIZE} bytes"));
        out.write_all(&token)?;
    }
    Ok(())
}
