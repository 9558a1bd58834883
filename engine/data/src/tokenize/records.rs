//! The records of a tokenization: texts, pairs or chats. They are read in chunks, and each chunk becomes documents.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::super::budget::Share;
use super::super::chat::Chats;
use super::super::meta::Meta;
use super::super::pairs::{self, Batches, Filled, Loss, PairSource, Pairs};
use super::super::text::{self, Cut, Inputs};
use super::super::tokenizer::Spans;
use super::Job;
use engine::error::Result;

/// The records of the inputs.
#[derive(Clone, Copy)]
pub enum Records<'a> {
    /// Each is the text of a document.
    Texts(&'a Inputs),
    /// Each is a pair, of which one or two documents are made.
    Pairs(&'a Pairs),
    /// Each is a conversation.
    Chats(&'a Chats),
}

/// Chunks of the inputs, in order.
pub type Chunks<'c> = Box<dyn Iterator<Item = Result<Chunk>> + Send + 'c>;

pub enum Chunk {
    Texts(text::Chunk),
    Pairs(pairs::Batch),
}

/// The ids of a chunk, and the documents or parts of one that they belong to.
pub struct Encoded<'s> {
    pub ids: Vec<u32>,
    /// For each id 1 if it counts, else 0; empty where all count.
    pub mask: Vec<u8>,
    pub parts: Vec<EncodedPart>,
    /// Bytes of text.
    pub text: u64,
    _share: Share<'s>,
}

pub struct EncodedPart {
    /// The index in the chunk's ids where the part ends.
    pub end: usize,
    pub first: bool,
    pub last: bool,
    /// The error names file and line.
    pub problem: Option<String>,
}

/// A whole document: its ids, and its mask where the records have masks.
#[derive(Default)]
pub struct Document {
    pub ids: Vec<u32>,
    pub mask: Vec<u8>,
}

impl Document {
    /// A document of which the bytes in `stretches` count.
    pub fn masked(spans: Spans, stretches: &[std::ops::Range<usize>]) -> Self {
        let mask = spans.mask(stretches);
        Self { ids: spans.ids, mask }
    }
}

impl<'a> Records<'a> {
    /// Checks that every input can be read; returns the bytes of the files together.
    pub fn check(&self) -> Result<u64> {
        match self {
            Records::Texts(inputs) => inputs.check(),
            Records::Pairs(pairs) => pairs.check(),
            Records::Chats(chats) => chats.inputs.check(),
        }
    }

    /// Whether only some tokens count.
    pub fn have_masks(&self) -> bool {
        match self {
            Records::Texts(_) => false,
            Records::Pairs(pairs) => pairs.loss == Loss::SecondSide,
            Records::Chats(_) => true,
        }
    }

    /// Records the kind of records that the documents come from.
    pub fn describe(&self, meta: &mut Meta) {
        (meta.records, meta.template) = match self {
            Records::Texts(_) => (None, None),
            Records::Pairs(pairs) => (Some("pairs".into()), Some(pairs.describe())),
            Records::Chats(chats) => (Some("chats".into()), Some(chats.template.hash())),
        };
        meta.mask = self.have_masks();
    }

    /// The files that [`Self::chunks`] reads side by side.
    pub fn files(&self) -> [Inputs; 2] {
        let none = || pairs::lines_of(Vec::new());
        match self {
            Records::Pairs(Pairs { source: PairSource::Lines([ja, en]), .. }) => {
                [pairs::lines_of(vec![ja.clone()]), pairs::lines_of(vec![en.clone()])]
            }
            Records::Pairs(Pairs { source: PairSource::Json(inputs, _), .. }) => [inputs.clone(), none()],
            Records::Texts(inputs) => [(*inputs).clone(), none()],
            Records::Chats(chats) => [chats.inputs.clone(), none()],
        }
    }

    /// `files` are those of [`Self::files`]; `cut` says where a text may be cut, and `read` counts the bytes taken from
    /// the disk.
    pub fn chunks<'c>(&self, files: &'c [Inputs; 2], cut: Cut<'c>, read: &Arc<AtomicU64>) -> Chunks<'c> {
        match self {
            Records::Pairs(Pairs { source: PairSource::Lines(_), .. }) => {
                Box::new(Batches::new(files, read).map(|batch| Ok(Chunk::Pairs(batch?))))
            }
            _ => Box::new(text::Chunks::new(&files[0], cut, read.clone()).map(|chunk| Ok(Chunk::Texts(chunk?)))),
        }
    }

    /// The documents of a chunk.
    pub fn encode<'s>(&self, job: &Job, chunk: &Chunk, share: Share<'s>) -> Encoded<'s> {
        let mut out = Encoded { ids: Vec::new(), mask: Vec::new(), parts: Vec::new(), text: 0, _share: share };
        match (self, chunk) {
            (Records::Texts(inputs), Chunk::Texts(chunk)) => encode_texts(job, chunk, &inputs.key, &mut out),
            (Records::Chats(chats), Chunk::Texts(chunk)) => encode_chats(job, chats, chunk, &mut out),
            (Records::Pairs(pairs), chunk) => encode_pairs(job, pairs, chunk, &mut out),
            (_, Chunk::Pairs(_)) => unreachable!("only pairs are read from two files"),
        }
        out
    }
}

impl Chunk {
    /// Bytes of text.
    pub fn size(&self) -> usize {
        match self {
            Chunk::Texts(chunk) => chunk.size(),
            Chunk::Pairs(batch) => batch.size,
        }
    }

    /// Whether a document is too long to be read.
    pub fn is_cut_short(&self) -> bool {
        matches!(self, Chunk::Texts(chunk) if chunk.is_cut_short())
    }
}

impl Encoded<'_> {
    /// Ends a document whose tokens are all in this chunk.
    fn end_document(&mut self, problem: Option<String>) {
        self.parts.push(EncodedPart { end: self.ids.len(), first: true, last: true, problem });
    }

    /// Adds whole documents, which BOS and EOS are put around, or the problem of the record that they come from.
    fn add(&mut self, job: &Job, documents: std::result::Result<Vec<Document>, String>) {
        match documents {
            Ok(documents) => documents.into_iter().for_each(|document| {
                self.ids.extend(job.bos.into_iter().chain(document.ids).chain(job.eos));
                if job.records.have_masks() {
                    let (bos, eos) = (job.bos.map(|_| 0), job.eos.map(|_| 1));
                    self.mask.extend(bos.into_iter().chain(document.mask).chain(eos));
                }
                self.end_document(None);
            }),
            Err(problem) => self.end_document(Some(problem)),
        }
    }
}

fn encode_texts(job: &Job, chunk: &text::Chunk, key: &str, out: &mut Encoded) {
    for part in chunk.parts(key) {
        let (first, last) = (part.first, part.last);
        let ids = part.text.and_then(|text| {
            out.text += text.len() as u64;
            let ids = if first { job.tokenizer.encode_long(&text) } else { job.tokenizer.encode_long_rest(&text) };
            ids.map_err(|e| chunk.at_line(part.line, &e.to_string()))
        });
        let problem = match ids {
            Ok(ids) if ids.is_empty() && first && last => None,
            Ok(ids) => {
                out.ids.extend(job.bos.filter(|_| first));
                out.ids.extend(ids);
                out.ids.extend(job.eos.filter(|_| last));
                None
            }
            Err(problem) => Some(problem),
        };
        out.parts.push(EncodedPart { end: out.ids.len(), first, last, problem });
    }
}

fn encode_pairs(job: &Job, pairs: &Pairs, chunk: &Chunk, out: &mut Encoded) {
    let mut add = |sides: std::result::Result<[&str; 2], String>, at: &dyn Fn(&str) -> String| {
        let filled = sides.and_then(|[ja, en]| pairs.documents(ja, en).map_err(|e| at(&e)));
        let documents = filled.and_then(|filled| {
            out.text += filled.iter().map(|filled| filled.text.len() as u64).sum::<u64>();
            let encode = |filled: Filled| encode_pair(job, filled).map_err(|e| at(&e.to_string()));
            filled.into_iter().map(encode).collect()
        });
        out.add(job, documents);
    };
    match (chunk, &pairs.source) {
        (Chunk::Pairs(batch), PairSource::Lines(files)) => {
            for (number, pair) in (batch.first..).zip(&batch.pairs) {
                let at = |what: &str| {
                    let [ja, en] = files.each_ref().map(|file| file.display());
                    format!("{ja} and {en}: line {number}: {what}")
                };
                add(pair.as_ref().map(|sides| sides.each_ref().map(String::as_str)).map_err(String::clone), &at);
            }
        }
        (Chunk::Texts(chunk), PairSource::Json(_, keys)) => {
            for line in chunk.lines().iter().filter(|line| !line.is_blank()) {
                let at = |what: &str| chunk.at_line(line.number, what);
                let sides = line.text.clone().and_then(|line| Pairs::sides(keys, line).map_err(|e| at(&e)));
                let sides = sides.as_ref().map(|sides| sides.each_ref().map(|side| &**side)).map_err(String::clone);
                add(sides, &at);
            }
        }
        _ => unreachable!("a chunk is of the kind of its source"),
    }
}

fn encode_pair(job: &Job, filled: Filled) -> Result<Document> {
    match job.records.have_masks() {
        true => Ok(Document::masked(job.tokenizer.encode_spans(&filled.text)?, &filled.second)),
        false => Ok(Document { ids: job.tokenizer.encode_long(&filled.text)?, mask: Vec::new() }),
    }
}

fn encode_chats(job: &Job, chats: &Chats, chunk: &text::Chunk, out: &mut Encoded) {
    for line in chunk.lines().iter().filter(|line| !line.is_blank()) {
        let at = |what: String| chunk.at_line(line.number, &what);
        let chat = line.text.clone().and_then(|line| chats.encode(job.tokenizer, line).map_err(at));
        let document = chat.map(|(document, text)| {
            out.text += text;
            vec![document]
        });
        out.add(job, document);
    }
}
