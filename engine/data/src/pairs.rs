//! Parallel texts: pairs of a Japanese and an English side, out of two files line by line or out of two keys of JSON
//! lines, and the documents that are made of a pair.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::json::Field;
use super::text::{Chunks, Format, Inputs};
use engine::error::{Error, Result};

/// Bytes of text in a [`Batch`] of pairs.
const BATCH: usize = 256 << 10;

/// The built-in texts around a pair.
const NTP: &str = "{A} {B}";
const FROM_JA: &str = "Please translate the following Japanese text into English.\n{A} {B}";
const FROM_EN: &str = "Please translate the following English text into Japanese.\n{A} {B}";

/// Where the pairs are.
#[derive(Debug, Clone)]
pub enum PairSource {
    /// Line i of the first file is the translation of line i of the second.
    Lines([PathBuf; 2]),
    /// JSON lines with the two sides under two keys.
    Json(Inputs, [String; 2]),
}

/// Which orders of the sides become documents, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Both,
    JaEn,
    EnJa,
}

/// The part of a document whose tokens count in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Everything,
    /// The side that comes second, and the token that ends the document.
    SecondSide,
}

/// Pairs, and how documents are made of them.
#[derive(Debug, Clone)]
pub struct Pairs {
    pub source: PairSource,
    pub loss: Loss,
    /// The texts for Japanese before English, and for the other order; `None`: no such document.
    templates: [Option<Template>; 2],
}

/// The text around a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    First,
    Second,
}

/// The text of a document, and the bytes in it that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    pub text: String,
    pub second: Vec<Range<usize>>,
}

impl Pairs {
    /// `ntp`: the sides joined by a space, all of which counts.
    pub fn plain(source: PairSource, direction: Direction) -> Self {
        let template = Template::parse(NTP).expect("has both sides");
        Self::of(source, direction, Loss::Everything, [template.clone(), template])
    }

    /// `translation`: an instruction, the first side, and the second, which alone counts.
    pub fn translation(source: PairSource, direction: Direction) -> Self {
        let templates = [FROM_JA, FROM_EN].map(|text| Template::parse(text).expect("has both sides"));
        Self::of(source, direction, Loss::SecondSide, templates)
    }

    /// A text of the user's, with `{A}` for the side that comes first and `{B}` for the other. The error does not name
    /// the file.
    pub fn templated(
        source: PairSource,
        direction: Direction,
        loss: Loss,
        text: &str,
    ) -> std::result::Result<Self, String> {
        let template = Template::parse(text)?;
        Ok(Self::of(source, direction, loss, [template.clone(), template]))
    }

    fn of(source: PairSource, direction: Direction, loss: Loss, [ja_en, en_ja]: [Template; 2]) -> Self {
        let [first, second] = match direction {
            Direction::Both => [true, true],
            Direction::JaEn => [true, false],
            Direction::EnJa => [false, true],
        };
        Self { source, loss, templates: [Some(ja_en).filter(|_| first), Some(en_ja).filter(|_| second)] }
    }

    /// Checks that every input can be read; returns the bytes of the files together.
    pub fn check(&self) -> Result<u64> {
        match &self.source {
            PairSource::Lines(paths) => lines_of(paths.to_vec()).check(),
            PairSource::Json(inputs, _) => inputs.check(),
        }
    }

    /// The documents of a pair; the error says which side is empty. White space around a side is left out.
    pub fn documents(&self, ja: &str, en: &str) -> std::result::Result<Vec<Filled>, String> {
        let (ja, en) = (ja.trim(), en.trim());
        if let Some(side) = [ja, en].iter().position(|text| text.is_empty()) {
            let name = match &self.source {
                PairSource::Lines(_) => ["the first side", "the second side"][side].to_string(),
                PairSource::Json(_, keys) => format!("the side {:?}", keys[side]),
            };
            return Err(format!("{name} of the pair is empty; remove the pair, or leave it out by --skip-bad"));
        }
        let [ja_en, en_ja] = &self.templates;
        let filled = [ja_en.as_ref().map(|t| t.fill(ja, en)), en_ja.as_ref().map(|t| t.fill(en, ja))];
        Ok(filled.into_iter().flatten().collect())
    }

    /// Both sides of a JSON line. The error does not name the file.
    pub fn sides<'a>(keys: &[String; 2], line: &'a str) -> std::result::Result<[std::borrow::Cow<'a, str>; 2], String> {
        let side = |key: &str| Field { key, flag: "--pair-keys", example: "\"...\"" }.string(line);
        Ok([side(&keys[0])?, side(&keys[1])?])
    }

    /// The texts around the pairs, for `PREFIX.meta.json`.
    pub fn describe(&self) -> String {
        let texts: Vec<String> = self.templates.iter().flatten().map(Template::spell).collect();
        texts.join("\n---\n")
    }
}

impl Template {
    /// A line's end at the end of the text is not part of it.
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let text = text.strip_suffix("\r\n").or(text.strip_suffix('\n')).unwrap_or(text);
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = [rest.find("{A}"), rest.find("{B}")].into_iter().flatten().min() {
            pieces.push(Piece::Text(rest[..at].to_string()));
            pieces.push(if rest[at..].starts_with("{A}") { Piece::First } else { Piece::Second });
            rest = &rest[at + 3..];
        }
        pieces.push(Piece::Text(rest.to_string()));
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        for (side, name) in [(Piece::First, "{A}"), (Piece::Second, "{B}")] {
            if !pieces.contains(&side) {
                return Err(format!("has no {name}; a template has {{A}} and {{B}} where the two sides belong"));
            }
        }
        Ok(Self(pieces))
    }

    fn fill(&self, first: &str, second: &str) -> Filled {
        let mut filled = Filled { text: String::new(), second: Vec::new() };
        for piece in &self.0 {
            let start = filled.text.len();
            match piece {
                Piece::Text(text) => filled.text += text,
                Piece::First => filled.text += first,
                Piece::Second => {
                    filled.text += second;
                    filled.second.push(start..filled.text.len());
                }
            }
        }
        filled
    }

    fn spell(&self) -> String {
        self.fill("{A}", "{B}").text
    }
}

/// Lines of two files that belong together.
#[derive(Debug)]
pub struct Batch {
    /// The line of the first pair, counted from 1.
    pub first: u64,
    /// The error names file and line.
    pub pairs: Vec<std::result::Result<[String; 2], String>>,
    pub size: usize,
}

/// Reads two files line by line.
pub struct Batches<'a> {
    files: [Lines<'a>; 2],
    done: bool,
}

/// The one file of a pair of files.
pub fn lines_of(paths: Vec<PathBuf>) -> Inputs {
    Inputs { paths, format: Some(Format::JsonLines), key: String::new() }
}

impl<'a> Batches<'a> {
    /// `read` counts the bytes taken from the disk.
    pub fn new(files: &'a [Inputs; 2], read: &Arc<AtomicU64>) -> Self {
        Self { files: [Lines::new(&files[0], read), Lines::new(&files[1], read)], done: false }
    }

    fn read(&mut self) -> Result<Batch> {
        let mut batch = Batch { first: self.files[0].number + 1, pairs: Vec::new(), size: 0 };
        while batch.size < BATCH {
            let [first, second] = &mut self.files;
            match (first.next()?, second.next()?) {
                (None, None) => {
                    self.done = true;
                    break;
                }
                (Some(a), Some(b)) => {
                    batch.size += a.as_ref().map_or(1, |a| a.len() + 1) + b.as_ref().map_or(1, |b| b.len() + 1);
                    batch.pairs.push(a.and_then(|a| b.map(|b| [a, b])));
                }
                (Some(_), None) => return Err(unequal(first, second)),
                (None, Some(_)) => return Err(unequal(second, first)),
            }
        }
        Ok(batch)
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let batch = self.read();
        self.done |= batch.is_err();
        Some(batch).filter(|batch| batch.as_ref().map_or(true, |batch| !batch.pairs.is_empty()))
    }
}

/// The error for files of different lengths; reads the longer one to its end to count its lines.
fn unequal(longer: &mut Lines, shorter: &Lines) -> Error {
    loop {
        match longer.next() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(e) => return e,
        }
    }
    let [long, short] = [&*longer, shorter].map(|lines| lines.inputs.paths[0].display());
    Error::user(format!(
        "{short}: has {} lines, but {long} has {}; line i of one must be the translation of line i of the other",
        shorter.number, longer.number
    ))
}

/// The lines of one file.
struct Lines<'a> {
    inputs: &'a Inputs,
    chunks: Chunks<'a>,
    ready: VecDeque<std::result::Result<String, String>>,
    /// Lines handed out.
    number: u64,
}

impl<'a> Lines<'a> {
    fn new(inputs: &'a Inputs, read: &Arc<AtomicU64>) -> Self {
        // JSON lines are cut at newlines alone.
        let chunks = Chunks::new(inputs, &|_| None, read.clone());
        Self { inputs, chunks, ready: VecDeque::new(), number: 0 }
    }

    fn next(&mut self) -> Result<Option<std::result::Result<String, String>>> {
        while self.ready.is_empty() {
            let Some(chunk) = self.chunks.next().transpose()? else { return Ok(None) };
            self.ready.extend(chunk.lines().into_iter().map(|line| line.text.map(str::to_string)));
        }
        self.number += 1;
        Ok(self.ready.pop_front())
    }
}

#[cfg(test)]
mod tests;
