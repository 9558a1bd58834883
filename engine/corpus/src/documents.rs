//! Whole documents, read from the inputs in batches that workers parse.
//!
//! A JSON record keeps its line, so that a document that is written again has all other keys of its record byte for
//! byte. The text of a file without records is one document; its parts are joined here, so it is bounded.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use data::json;
use data::text::{Chunk, Chunks, Format, Inputs, LONGEST_LINE, last_character};
use engine::error::{Error, Result};

use crate::record;

/// Messages of bad records beyond this many are not kept.
const NAMED: u64 = 10;

/// A document and where it begins.
#[derive(Debug, Clone)]
pub struct Document {
    pub text: String,
    /// The line of JSON that it was read from, without the line's end; `None` for a text file.
    pub record: Option<String>,
    pub file: Arc<Path>,
    /// Counted from 1.
    pub line: u64,
}

/// What to do with a record that is no document: one without the key, no JSON, not UTF-8, or too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bad {
    /// It ends the command.
    Refuse,
    /// It is left out and counted.
    Skip,
}

/// Bad records that were left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    pub count: u64,
    /// The messages of the first ten, each with file and line.
    pub first: Vec<String>,
}

/// Some consecutive documents of the inputs, not yet parsed.
#[derive(Debug)]
pub struct Batch {
    file: Arc<Path>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Whole lines of JSON.
    Lines(Chunk),
    /// All chunks of a text file.
    Text(Vec<Chunk>),
    /// The message for a text file that is too long.
    TooLong(String),
}

impl Document {
    /// The document as one line of JSON, without a line's end, with `text` as the text under `key`. The other keys of
    /// its record keep their order and bytes; where the text is that of the record, the line is the record's own. The
    /// error names the place.
    pub fn as_json(&self, key: &str, text: &str) -> std::result::Result<String, String> {
        match &self.record {
            Some(record) if text == self.text => Ok(record.clone()),
            Some(record) => {
                record::with_value(record, key, &quoted(text)).map_err(|what| format!("{}: {what}", self.place()))
            }
            None => Ok(format!("{{{}: {}}}", quoted(key), quoted(text))),
        }
    }

    /// `FILE: line N`.
    pub fn place(&self) -> String {
        format!("{}: line {}", self.file.display(), self.line)
    }
}

/// A string as JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Bad {
    /// Ends the command with the message of a bad record, or counts the record.
    pub fn record(self, message: String, skipped: &mut Skipped) -> Result<()> {
        match self {
            Bad::Refuse => Err(Error::user(message)),
            Bad::Skip => {
                skipped.count += 1;
                skipped.first.extend(Some(message).filter(|_| skipped.count <= NAMED));
                Ok(())
            }
        }
    }
}

impl Batch {
    /// The documents in their order, each a string under `key`; the error of a bad record names file and line.
    pub fn documents(&self, key: &str) -> Vec<std::result::Result<Document, String>> {
        match &self.content {
            Content::Lines(chunk) => self.lines(chunk, key),
            Content::Text(chunks) => vec![self.whole(chunks, key)],
            Content::TooLong(problem) => vec![Err(problem.clone())],
        }
    }

    /// Bytes of the inputs in memory.
    pub fn size(&self) -> usize {
        match &self.content {
            Content::Lines(chunk) => chunk.size(),
            Content::Text(chunks) => chunks.iter().map(Chunk::size).sum(),
            Content::TooLong(problem) => problem.len(),
        }
    }

    fn lines(&self, chunk: &Chunk, key: &str) -> Vec<std::result::Result<Document, String>> {
        let lines = chunk.lines().into_iter().filter(|line| !line.is_blank());
        let document = |line: data::text::Line| {
            let record = without_end(line.text?);
            let text = json::string_under(key, record).map_err(|what| chunk.at_line(line.number, &what))?.into_owned();
            Ok(Document { text, record: Some(record.into()), file: self.file.clone(), line: line.number })
        };
        lines.map(document).collect()
    }

    fn whole(&self, chunks: &[Chunk], key: &str) -> std::result::Result<Document, String> {
        let mut text = String::with_capacity(self.size());
        for part in chunks.iter().flat_map(|chunk| chunk.parts(key)) {
            text += &part.text?;
        }
        Ok(Document { text, record: None, file: self.file.clone(), line: 1 })
    }
}

/// The line without its end, and without the byte-order mark that a concatenation of files has inside.
fn without_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    line.strip_prefix('\u{feff}').unwrap_or(line)
}

/// All batches of the inputs in their order, of about 256 KiB, or of one longer document; `read` counts the bytes taken
/// from the disk. A text file is one document of at most 64 MiB; JSON lines have one a line, blank lines left out.
pub fn batches(inputs: &Inputs, read: Arc<AtomicU64>) -> impl Iterator<Item = Result<Batch>> + Send {
    Batches { chunks: Chunks::new(inputs, &last_character, read) }
}

struct Batches<'a> {
    chunks: Chunks<'a>,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.chunks.next()? {
            Ok(chunk) if chunk.format() == Format::Text => self.text_file(chunk),
            Ok(chunk) => Ok(Batch { file: chunk.file().into(), content: Content::Lines(chunk) }),
            Err(e) => Err(e),
        };
        Some(batch)
    }
}

impl Batches<'_> {
    /// The file that begins with `first`. One that is too long is read to its end and forgotten.
    fn text_file(&mut self, first: Chunk) -> Result<Batch> {
        let file: Arc<Path> = first.file().into();
        let (mut size, mut chunks) = (0, Vec::new());
        let mut next = Some(first);
        while let Some(chunk) = next {
            size += chunk.size();
            let is_last = chunk.is_last();
            match size > LONGEST_LINE {
                true => chunks = Vec::new(),
                false => chunks.push(chunk),
            }
            next = if is_last { None } else { self.chunks.next().transpose()? };
        }
        let content = match size > LONGEST_LINE {
            true => Content::TooLong(too_long(&file)),
            false => Content::Text(chunks),
        };
        Ok(Batch { file, content })
    }
}

fn too_long(file: &Path) -> String {
    format!(
        "{}: line 1: the file is one document, and longer than {} MiB; split it, or put one document a line into a \
         .jsonl file",
        file.display(),
        LONGEST_LINE >> 20
    )
}

#[cfg(test)]
mod tests;
