//! Text files as chunks that workers can take one by one: `.txt` (one document a file) and `.jsonl` (one a
//! line), plain or as gzip or zstd, whatever their size. Only one chunk is in memory here: about [`SEGMENT`] bytes,
//! more where the text has no earlier place to cut, never more than [`LONGEST`].

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::json;
use engine::error::{Error, Result};

/// Bytes of a chunk, if the text can be cut there.
const SEGMENT: usize = 1 << 20;

/// Bytes of a JSON line, or of a part of a text that cannot be cut.
pub const LONGEST: usize = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Lines,
}

/// A piece of a file, uncompressed.
#[derive(Debug)]
pub struct Chunk {
    file: Arc<Path>,
    format: Format,
    bytes: Vec<u8>,
    /// Lines and bytes of the uncompressed file before this chunk.
    lines: u64,
    offset: u64,
    first: bool,
    last: bool,
}

/// A document, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub text: std::borrow::Cow<'a, str>,
    pub first: bool,
    pub last: bool,
}

/// Checks that every input is a file of a known kind; returns their bytes on disk together.
pub fn total_bytes(inputs: &[PathBuf]) -> Result<u64> {
    let size = |path: &PathBuf| {
        format_of(path)?;
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if meta.is_dir() {
            return Err(Error::user(format!("{}: a folder; name the files in it", path.display())));
        }
        Ok(meta.len())
    };
    inputs.iter().map(size).sum()
}

/// Reads files one after the other.
pub struct Chunks<'a> {
    inputs: std::slice::Iter<'a, PathBuf>,
    /// Where a text may be cut: after the bytes it returns, fewer than it was given.
    cut: &'a (dyn Fn(&[u8]) -> Option<usize> + Sync),
    read: Arc<AtomicU64>,
    open: Option<Open>,
}

/// The file that is being read.
struct Open {
    file: Arc<Path>,
    format: Format,
    source: Box<dyn Read + Send>,
    /// Read but not handed out.
    rest: Vec<u8>,
    lines: u64,
    offset: u64,
}

impl<'a> Chunks<'a> {
    /// `read` counts the bytes taken from the disk.
    pub fn new(inputs: &'a [PathBuf], cut: &'a (dyn Fn(&[u8]) -> Option<usize> + Sync), read: Arc<AtomicU64>) -> Self {
        Self { inputs: inputs.iter(), cut, read, open: None }
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.open.is_none() {
            match open(self.inputs.next()?, &self.read) {
                Ok(open) => self.open = Some(open),
                Err(e) => return Some(Err(e)),
            }
        }
        let chunk = self.open.as_mut().expect("just opened").chunk(self.cut);
        if chunk.as_ref().map_or(true, |c| c.last) {
            self.open = None;
        }
        Some(chunk)
    }
}

impl Open {
    fn chunk(&mut self, cut: &dyn Fn(&[u8]) -> Option<usize>) -> Result<Chunk> {
        let mut target = SEGMENT;
        let end = loop {
            let done = self.fill(target)?;
            let at = match self.format {
                _ if done => Some(self.rest.len()),
                Format::Text => cut(&self.rest),
                Format::Lines => self.rest.iter().rposition(|&b| b == b'\n').map(|at| at + 1),
            };
            match at {
                Some(at) => break (at, done),
                None if target >= LONGEST => return Err(self.too_long()),
                None => target *= 2,
            }
        };
        let rest = self.rest.split_off(end.0);
        let bytes = std::mem::replace(&mut self.rest, rest);
        let (first, lines, offset) = (self.offset == 0, self.lines, self.offset);
        self.lines += bytes.iter().filter(|&&b| b == b'\n').count() as u64;
        self.offset += bytes.len() as u64;
        Ok(Chunk { file: self.file.clone(), format: self.format, bytes, lines, offset, first, last: end.1 })
    }

    /// Reads until `target` bytes are there; whether the file ended before.
    fn fill(&mut self, target: usize) -> Result<bool> {
        let missing = target.saturating_sub(self.rest.len()) as u64;
        let read = self.source.by_ref().take(missing).read_to_end(&mut self.rest);
        read.map_err(|e| self.unreadable(e))?;
        Ok(self.rest.len() < target)
    }

    fn unreadable(&self, e: std::io::Error) -> Error {
        match e.kind() {
            ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::Other => {
                let at = self.offset + self.rest.len() as u64;
                Error::user(format!("{}: damaged after {at} bytes of text: {e}", self.file.display()))
            }
            _ => Error::io(&self.file, e),
        }
    }

    fn too_long(&self) -> Error {
        let (file, line, mib) = (self.file.display(), self.lines + 1, LONGEST >> 20);
        Error::user(match self.format {
            Format::Lines => format!("{file}: line {line} is longer than {mib} MiB: split the document"),
            Format::Text => format!(
                "{file}: the text from line {line} on has no place within {mib} MiB where this tokenizer allows a cut: \
                 split it into files, or put one document a line into a .jsonl file"
            ),
        })
    }
}

impl Chunk {
    /// Bytes of uncompressed text.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The documents, or the part of one, in this chunk: of JSON lines the string under `key`. Errors name file
    /// and line.
    pub fn parts(&self, key: &str) -> Result<Vec<Part<'_>>> {
        let (first, last) = (self.first, self.last);
        match self.format {
            Format::Text => Ok(vec![Part { text: self.utf8(&self.bytes, 0)?.into(), first, last }]),
            Format::Lines => self.json_lines(key),
        }
    }

    fn json_lines(&self, key: &str) -> Result<Vec<Part<'_>>> {
        let mut parts = Vec::new();
        let mut at = 0;
        for (i, line) in self.bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            let text = self.utf8(line, at)?;
            at += line.len();
            if text.trim().is_empty() {
                continue;
            }
            let text = json::string_under(key, text).map_err(|what| {
                Error::user(format!("{}: line {}: {what}", self.file.display(), self.lines + i as u64 + 1))
            })?;
            parts.push(Part { text, first: true, last: true });
        }
        Ok(parts)
    }

    fn utf8<'a>(&self, bytes: &'a [u8], at: usize) -> Result<&'a str> {
        std::str::from_utf8(bytes).map_err(|e| {
            let at = at + e.valid_up_to();
            let before = &self.bytes[..at];
            let line = self.lines + before.iter().filter(|&&b| b == b'\n').count() as u64 + 1;
            let column = at - before.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1) + 1;
            let name = self.file.display();
            Error::user(format!(
                "{name}: line {line}, byte {column} (offset {} of the file): 0x{:02x} is not UTF-8; convert the file first, \
                 for example: iconv -f SHIFT_JIS -t UTF-8 {name} > utf8.txt (or -f EUC-JP, UTF-16, CP932, LATIN1)",
                self.offset + at as u64,
                self.bytes[at]
            ))
        })
    }
}

/// By the name, without what says that it is compressed.
fn format_of(path: &Path) -> Result<Format> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "txt" => Ok(Format::Text),
        "jsonl" | "ndjson" | "json" => Ok(Format::Lines),
        _ => Err(Error::user(format!("{}: its name should end in .txt or .jsonl (and .gz or .zst)", path.display()))),
    }
}

fn open(path: &Path, read: &Arc<AtomicU64>) -> Result<Open> {
    let format = format_of(path)?;
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    let counted = Counted { file, read: read.clone() };
    let whole = Cursor::new(magic.clone()).chain(counted);
    let source: Box<dyn Read + Send> = match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole).map_err(io)?),
        _ if path.extension().is_some_and(|e| e == "gz" || e == "zst") => {
            let what = "is not compressed, though its name says so; rename it, or make it anew";
            return Err(Error::user(format!("{}: {what}", path.display())));
        }
        _ => Box::new(whole),
    };
    let mut open = Open { file: path.into(), format, source, rest: Vec::new(), lines: 0, offset: 0 };
    open.fill(3)?;
    if open.rest == b"\xef\xbb\xbf" {
        open.rest.clear();
    }
    Ok(open)
}

/// Counts what is read, for the progress bar.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
