//! The one reader of texts: `.txt` (one document a file) and `.jsonl` (one a line), plain or as gzip or zstd, files and
//! pipes of any size, as chunks that workers can take one by one. Only one chunk is in memory here: about [`SEGMENT`]
//! bytes, more where the text has no earlier place to cut, never more than [`LONGEST_LINE`].

use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::json;
use super::tokenizer::{LONGEST_UNCUT, uncut};
use engine::error::{Error, Result};

/// Bytes of a chunk, if the text can be cut there.
const SEGMENT: usize = 256 << 10;

/// Bytes of a JSON line.
pub const LONGEST_LINE: usize = 64 << 20;

/// Contents that are no text, by their first bytes.
const NO_TEXT: [(&[u8], &str); 5] = [
    (b"\xfd7zXZ\0", "is compressed with xz, which is not read here; pipe it in: xz -dc FILE | ... --input -"),
    (b"BZh91AY&SY", "is compressed with bzip2, which is not read here; pipe it in: bzip2 -dc FILE | ... --input -"),
    (b"PK\x03\x04", "is a zip archive; unpack it first"),
    (b"PAR1\x15", "is a Parquet file; write its text as JSON lines first"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4, which is not read here; pipe it in: lz4 -dc FILE | ... --input -"),
];

/// The two kinds of text files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One document a file.
    Text,
    /// One document a line, a string in a JSON object.
    JsonLines,
}

/// The files that a command reads texts from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Read in this order; `-` is standard input.
    pub paths: Vec<PathBuf>,
    /// `None`: the ending of each name decides, and for a pipe without one its first byte.
    pub format: Option<Format>,
    /// The key of the text in JSON lines.
    pub key: String,
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
    /// Why the rest of the document cannot be read.
    problem: Option<String>,
}

/// A document, or a part of one.
#[derive(Debug)]
pub struct Part<'a> {
    /// The error names file and line.
    pub text: std::result::Result<Cow<'a, str>, String>,
    /// The line where it begins, counted from 1.
    pub line: u64,
    pub first: bool,
    pub last: bool,
}

/// A line of a file, with its end.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// The error names file and line.
    pub text: std::result::Result<&'a str, String>,
    /// Counted from 1.
    pub number: u64,
}

impl Line<'_> {
    pub fn is_blank(&self) -> bool {
        self.text.as_ref().is_ok_and(|text| text.trim_matches(is_blank).is_empty())
    }
}

impl Inputs {
    /// Checks that every input can be read and is of a known kind; returns the bytes of the files together. Pipes
    /// count as none.
    pub fn check(&self) -> Result<u64> {
        if self.paths.iter().filter(|path| is_stdin(path)).count() > 1 {
            return Err(Error::user("-: standard input can be read only once"));
        }
        let size = |path: &PathBuf| {
            format_of(path, self.format)?;
            if is_stdin(path) {
                return Ok(0);
            }
            let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
            if meta.is_dir() {
                return Err(Error::user(format!("{}: a folder; name the files in it", path.display())));
            }
            Ok(meta.len())
        };
        self.paths.iter().map(size).sum()
    }

    /// The first input that is a pipe, and so can be read only once.
    pub fn first_pipe(&self) -> Option<&Path> {
        self.paths.iter().map(PathBuf::as_path).find(|path| is_pipe(path))
    }

    /// Calls `each` with every document as a whole, and stops at the first bad one.
    pub fn for_each_document(&self, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
        self.check()?;
        let mut whole = String::new();
        for chunk in Chunks::new(self, &last_character, Arc::default()) {
            let chunk = chunk?;
            for part in chunk.parts(&self.key) {
                let text = part.text.map_err(Error::user)?;
                if part.first && part.last {
                    each(&text)?;
                    continue;
                }
                whole += &text;
                if part.last {
                    each(&std::mem::take(&mut whole))?;
                }
            }
        }
        Ok(())
    }
}

/// A cut before the last character, for texts whose parts are joined again.
pub fn last_character(text: &[u8]) -> Option<usize> {
    text.iter().rposition(|b| b & 0xc0 != 0x80).filter(|&at| at > 0)
}

/// Returns the number of bytes after which a text may be cut, less than the length of the text.
pub type Cut<'a> = &'a (dyn Fn(&[u8]) -> Option<usize> + Sync);

/// Reads files one after the other.
pub struct Chunks<'a> {
    inputs: &'a Inputs,
    /// Index of the next input.
    next: usize,
    cut: Cut<'a>,
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
    /// The line is too long, and its rest is to be skipped.
    in_long_line: bool,
}

impl<'a> Chunks<'a> {
    /// `read` counts the bytes taken from the disk.
    pub fn new(inputs: &'a Inputs, cut: Cut<'a>, read: Arc<AtomicU64>) -> Self {
        Self { inputs, next: 0, cut, read, open: None }
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.open.is_none() {
            let path = self.inputs.paths.get(self.next)?;
            self.next += 1;
            match open(path, self.inputs.format, &self.read) {
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
    fn chunk(&mut self, cut: Cut) -> Result<Chunk> {
        if self.in_long_line {
            self.skip_line()?;
        }
        let mut target = SEGMENT;
        let (end, done) = loop {
            let done = self.fill(target)?;
            let (at, most) = match self.format {
                _ if done => (Some(self.rest.len()), 0),
                Format::Text => (cut(&self.rest), LONGEST_UNCUT),
                Format::JsonLines => (self.rest.iter().rposition(|&b| b == b'\n').map(|at| at + 1), LONGEST_LINE),
            };
            match at {
                Some(at) => break (at, done),
                None if self.rest.len() > most => return Ok(self.too_long()),
                None => target = (2 * target).min(most + 1),
            }
        };
        let rest = self.rest.split_off(end);
        Ok(self.hand_out(rest, done, None))
    }

    /// Makes a chunk of the bytes that were read, except for `rest`.
    fn hand_out(&mut self, rest: Vec<u8>, last: bool, problem: Option<String>) -> Chunk {
        let bytes = std::mem::replace(&mut self.rest, rest);
        let (first, lines, offset) = (self.offset == 0, self.lines, self.offset);
        self.lines += bytes.iter().filter(|&&b| b == b'\n').count() as u64;
        self.offset += bytes.len() as u64;
        Chunk { file: self.file.clone(), format: self.format, bytes, lines, offset, first, last, problem }
    }

    /// A chunk with the beginning of a document that is too long; the rest of the document is skipped.
    fn too_long(&mut self) -> Chunk {
        let (file, line) = (self.file.display(), self.lines + 1);
        let problem = match self.format {
            Format::JsonLines => {
                format!("{file}: line {line} is longer than {} MiB; split the document", LONGEST_LINE >> 20)
            }
            Format::Text => format!(
                "{file}: from line {line} on: {}, or put one document a line into a .jsonl file",
                uncut(self.rest.len())
            ),
        };
        self.in_long_line = self.format == Format::JsonLines;
        self.hand_out(Vec::new(), self.format == Format::Text, Some(problem))
    }

    fn skip_line(&mut self) -> Result<()> {
        self.in_long_line = false;
        loop {
            let done = self.fill(SEGMENT)?;
            let end = self.rest.iter().position(|&b| b == b'\n').map(|at| at + 1);
            let skipped = self.rest.drain(..end.unwrap_or(self.rest.len())).count();
            self.offset += skipped as u64;
            if end.is_some() || done {
                self.lines += u64::from(end.is_some());
                return Ok(());
            }
        }
    }

    /// The format by content: JSON lines if the first byte that is not blank is a brace, else text.
    fn format_by_content(&mut self) -> Result<Format> {
        let mut target = 64;
        loop {
            let done = self.fill(target)?;
            match self.rest.iter().find(|b| !b.is_ascii_whitespace()) {
                Some(b'{') => return Ok(Format::JsonLines),
                None if !done && target < LONGEST_LINE => target *= 2,
                _ => return Ok(Format::Text),
            }
        }
    }

    /// Reads until `target` bytes are there. Returns whether the file ended before that.
    fn fill(&mut self, target: usize) -> Result<bool> {
        let missing = target.saturating_sub(self.rest.len()) as u64;
        let read = self.source.by_ref().take(missing).read_to_end(&mut self.rest);
        read.map_err(|e| self.unreadable(e))?;
        Ok(self.rest.len() < target)
    }

    fn unreadable(&self, e: std::io::Error) -> Error {
        let file = self.file.display();
        match e.kind() {
            ErrorKind::Other if e.to_string().contains("too much memory") => Error::user(format!(
                "{file}: was compressed with a window of more than 128 MiB; pipe it in: \
                 zstd -dc --long=31 {file} | ... --input -"
            )),
            ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::Other => {
                let at = self.offset + self.rest.len() as u64;
                Error::user(format!("{file}: damaged after {at} bytes of text: {e}"))
            }
            _ => Error::io(&self.file, e),
        }
    }
}

impl Chunk {
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether this is the last chunk of its file.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// Whether a document is too long to be read.
    pub fn is_cut_short(&self) -> bool {
        self.problem.is_some()
    }

    /// Bytes of uncompressed text.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The documents, or the part of one, in this chunk. A document of JSON lines is the string under `key`.
    pub fn parts(&self, key: &str) -> Vec<Part<'_>> {
        let (first, last, line) = (self.first, self.last, self.lines + 1);
        if let Some(problem) = &self.problem {
            let whole = self.format == Format::JsonLines;
            return vec![Part { text: Err(problem.clone()), line, first: first || whole, last: last || whole }];
        }
        match self.format {
            Format::Text => vec![Part { text: self.utf8(&self.bytes, 0).map(Cow::from), line, first, last }],
            Format::JsonLines => self.json_lines(key),
        }
    }

    fn json_lines(&self, key: &str) -> Vec<Part<'_>> {
        let mut parts = Vec::new();
        for line in self.lines().into_iter().filter(|line| !line.is_blank()) {
            let string = |text| json::string_under(key, text).map_err(|what| self.at_line(line.number, &what));
            parts.push(Part { text: line.text.and_then(string), line: line.number, first: true, last: true });
        }
        parts
    }

    /// The lines in this chunk, with their ends, blank ones too.
    pub fn lines(&self) -> Vec<Line<'_>> {
        if let Some(problem) = &self.problem {
            return vec![Line { text: Err(problem.clone()), number: self.lines + 1 }];
        }
        let mut at = 0;
        let line = |(number, bytes): (u64, &[u8])| {
            let text = self.utf8(&self.bytes[at..at + bytes.len()], at);
            at += bytes.len();
            Line { text, number }
        };
        (self.lines + 1..).zip(self.bytes.split_inclusive(|&b| b == b'\n')).map(line).collect()
    }

    /// A message about a line.
    pub fn at_line(&self, number: u64, what: &str) -> String {
        format!("{}: line {number}: {what}", self.file.display())
    }

    /// `bytes`, which begin at `at`, as text.
    fn utf8<'a>(&self, bytes: &'a [u8], at: usize) -> std::result::Result<&'a str, String> {
        std::str::from_utf8(bytes).map_err(|e| {
            let at = at + e.valid_up_to();
            let before = &self.bytes[..at];
            let line = self.lines + before.iter().filter(|&&b| b == b'\n').count() as u64 + 1;
            let column = at - before.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1) + 1;
            let name = self.file.display();
            let utf16 = self.first && (self.bytes.starts_with(b"\xff\xfe") || self.bytes.starts_with(b"\xfe\xff"));
            let (encoding, others) = match utf16 {
                true => ("UTF-16", ""),
                false => ("SHIFT_JIS", " (or -f EUC-JP, UTF-16, CP932, LATIN1)"),
            };
            format!(
                "{name}: line {line}, byte {column} (offset {} of the file): 0x{:02x} is not UTF-8; convert the file \
                 first, for example: iconv -f {encoding} -t UTF-8 {name} > utf8.txt{others}",
                self.offset + at as u64,
                self.bytes[at]
            )
        })
    }
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c == '\u{feff}'
}

/// The requested format, else that of the file extension; `None` for a pipe, whose first byte decides.
fn format_of(path: &Path, asked: Option<Format>) -> Result<Option<Format>> {
    if asked.is_some() {
        return Ok(asked);
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_ascii_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "txt" => Ok(Some(Format::Text)),
        "jsonl" | "ndjson" | "json" => Ok(Some(Format::JsonLines)),
        _ if is_pipe(path) => Ok(None),
        _ if !path.exists() => Err(Error::io(path, ErrorKind::NotFound.into())),
        _ => Err(Error::user(format!(
            "{}: its name should end in .txt or .jsonl (and .gz or .zst); else give --input-format txt or \
             --input-format jsonl",
            path.display()
        ))),
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Whether the path is standard input, a named pipe, or `<(command)`.
fn is_pipe(path: &Path) -> bool {
    let is_other = |meta: std::fs::Metadata| !meta.is_file() && !meta.is_dir();
    let descriptors = ["/dev/stdin", "/dev/fd", "/proc/self/fd"];
    is_stdin(path)
        || descriptors.iter().any(|descriptor| path.starts_with(descriptor))
        || std::fs::metadata(path).is_ok_and(is_other)
}

fn open(path: &Path, asked: Option<Format>, read: &Arc<AtomicU64>) -> Result<Open> {
    let format = format_of(path, asked)?;
    let io = |e| Error::io(path, e);
    let mut file: Box<dyn Read + Send> = match is_stdin(path) {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).map_err(io)?),
    };
    let mut magic = Vec::new();
    file.by_ref().take(16).read_to_end(&mut magic).map_err(io)?;
    if let Some((_, what)) = NO_TEXT.iter().find(|(bytes, _)| magic.starts_with(bytes)) {
        return Err(Error::user(format!("{}: {what}", path.display())));
    }
    read.fetch_add(magic.len() as u64, Ordering::Relaxed);
    let counted = Counted { file, read: read.clone() };
    let whole = Cursor::new(magic.clone()).chain(counted);
    let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz") || e.eq_ignore_ascii_case("zst"));
    let source: Box<dyn Read + Send> = match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        // A zstd frame, or a skippable frame, with which pzstd begins its files.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::Decoder::new(whole).map_err(io)?)
        }
        _ if named => {
            let what =
                "is not compressed, although its name ends like a compressed file; rename it, or compress it again";
            return Err(Error::user(format!("{}: {what}", path.display())));
        }
        _ => Box::new(whole),
    };
    let (file, rest) = (path.into(), Vec::new());
    let mut open = Open { file, format: Format::Text, source, rest, lines: 0, offset: 0, in_long_line: false };
    open.fill(3)?;
    if open.rest == b"\xef\xbb\xbf" {
        open.rest.clear();
    }
    open.format = match format {
        Some(format) => format,
        None => open.format_by_content()?,
    };
    Ok(open)
}

/// Counts the bytes that are read, for the progress bar.
struct Counted {
    file: Box<dyn Read + Send>,
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
