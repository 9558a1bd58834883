//! Megatron's indexed token files, for writing: tokens stream through to a temporary name, only the lengths
//! stay in memory (four bytes a sequence). The pair appears whole or not at all: the `.bin` is renamed first,
//! the `.idx`, without which nothing reads the `.bin`, last.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::idx::{HEADER, MAGIC, TokenKind, with_suffix};
use engine::error::{Error, Result};

/// Writes one sequence per document.
pub struct IndexWriter {
    prefix: PathBuf,
    bin: BufWriter<File>,
    kind: TokenKind,
    lengths: Vec<i32>,
    /// Tokens of the document that is being written.
    open: u64,
}

/// What [`IndexWriter::finish`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub documents: u64,
    pub tokens: u64,
}

impl IndexWriter {
    /// Starts `PREFIX.bin.partial`, making the folder where it is missing.
    pub fn create(prefix: &Path, kind: TokenKind) -> Result<Self> {
        if prefix.file_name().is_none() {
            return Err(Error::user(format!("{}: a prefix needs a file name, such as data/corpus", prefix.display())));
        }
        if let Some(folder) = prefix.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let path = with_suffix(prefix, "bin.partial");
        let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        let bin = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { prefix: prefix.to_path_buf(), bin, kind, lengths: Vec::new(), open: 0 })
    }

    /// Appends tokens to the document that is being written. Every id must fit the kind of the file.
    pub fn push(&mut self, ids: &[u32]) -> Result<()> {
        let wrote = match self.kind {
            TokenKind::U16 => write_all(&mut self.bin, ids, |id| u16::try_from(id).ok().map(u16::to_le_bytes)),
            TokenKind::I32 => write_all(&mut self.bin, ids, |id| i32::try_from(id).ok().map(i32::to_le_bytes)),
            other => panic!("token files are written as u16 or i32, not {}", other.name()),
        };
        wrote.map_err(|e| Error::io(&with_suffix(&self.prefix, "bin.partial"), e))?;
        self.open += ids.len() as u64;
        Ok(())
    }

    /// Closes the document.
    pub fn end_document(&mut self) -> Result<()> {
        let length = i32::try_from(self.open).map_err(|_| {
            Error::user(format!(
                "{}: document {} has {} tokens; the format ends at {}: split it",
                self.prefix.display(),
                self.lengths.len(),
                self.open,
                i32::MAX
            ))
        })?;
        self.lengths.push(length);
        self.open = 0;
        Ok(())
    }

    /// Flushes both files and gives them their names.
    pub fn finish(mut self) -> Result<Written> {
        assert_eq!(self.open, 0, "tokens of a document that was not ended");
        let prefix = self.prefix.clone();
        let (bin, idx) = (with_suffix(&prefix, "bin"), with_suffix(&prefix, "idx"));
        let (bin_partial, idx_partial) = (with_suffix(&prefix, "bin.partial"), with_suffix(&prefix, "idx.partial"));
        let flushed = self.bin.flush().and_then(|()| self.bin.get_ref().sync_all());
        flushed.map_err(|e| Error::io(&bin_partial, e))?;
        self.write_idx(&idx_partial).map_err(|e| Error::io(&idx_partial, e))?;
        // An older .idx must never stand beside the newer .bin.
        match fs::remove_file(&idx) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&idx, e)),
            _ => {}
        }
        fs::rename(&bin_partial, &bin).map_err(|e| Error::io(&bin, e))?;
        fs::rename(&idx_partial, &idx).map_err(|e| Error::io(&idx, e))?;
        let folder = prefix.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, e))?;
        let tokens = self.lengths.iter().map(|&n| n as u64).sum();
        Ok(Written { documents: self.lengths.len() as u64, tokens })
    }

    fn write_idx(&self, path: &Path) -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
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
        for document in 0..=sequences {
            out.write_all(&document.to_le_bytes())?;
        }
        out.flush()?;
        out.get_ref().sync_all()
    }
}

impl Drop for IndexWriter {
    /// Leaves nothing half-written behind; after a `finish` there is nothing to remove.
    fn drop(&mut self) {
        for suffix in ["bin.partial", "idx.partial"] {
            fs::remove_file(with_suffix(&self.prefix, suffix)).ok();
        }
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
