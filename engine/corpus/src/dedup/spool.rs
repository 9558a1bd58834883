//! The documents in a temporary file, so that one can be read again by its number, and all in their order.
//!
//! Documents are put into blocks of about [`BLOCK`] bytes, each compressed on its own by zstd; reading one document
//! decompresses its block. In memory is an index of 16 bytes a block: at most a thousandth of the documents' bytes.
//! Documents are numbered from 0 in the order of the input.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use data::json::string_under;
use engine::error::{Error, Result};
use zstd::bulk::{Compressor, Decompressor};

use super::scratch::{Scratch, ScratchFile};
use crate::documents::Document;

/// A block is compressed when it has so many bytes. Larger ones are smaller on the disk and slower to read one
/// document from.
const BLOCK: usize = 16 << 10;

/// The fastest of the usual levels.
const LEVEL: i32 = 1;

/// Bytes of the blocks that are read together where all are read.
const ROUND: usize = 2 << 20;

/// Buffers that a long document made larger than this are given back.
const KEPT: usize = 1 << 20;

/// Makes blocks of documents.
pub struct Packer {
    compressor: Compressor<'static>,
    raw: Vec<u8>,
    documents: u32,
    /// That of the last document of the block.
    file: Option<Arc<Path>>,
}

/// A compressed block.
pub struct Packed {
    documents: u32,
    /// Bytes before compression.
    raw: u32,
    bytes: Vec<u8>,
}

impl Packer {
    pub fn new() -> Result<Self> {
        let compressor = Compressor::new(LEVEL).map_err(|e| Error::run(format!("zstd: {e}")))?;
        Ok(Self { compressor, raw: Vec::new(), documents: 0, file: None })
    }

    /// Adds a document of `characters` code points; the block, when it is full.
    pub fn add(&mut self, document: &Document, characters: u64) -> Result<Option<Packed>> {
        let body = document.record.as_ref().unwrap_or(&document.text);
        let same = self.file.as_ref() == Some(&document.file);
        let file = if same { &[] } else { document.file.as_os_str().as_bytes() };
        self.raw.push(u8::from(document.record.is_some()));
        for part in [file, body.as_bytes()] {
            let length = u32::try_from(part.len()).expect("the reader refuses longer documents");
            self.raw.extend(length.to_le_bytes());
            self.raw.extend(part);
        }
        self.raw.extend(document.line.to_le_bytes());
        self.raw.extend(characters.to_le_bytes());
        self.file = Some(document.file.clone());
        self.documents += 1;
        if self.raw.len() < BLOCK { Ok(None) } else { self.finish() }
    }

    /// The block with the documents that are not in one yet.
    pub fn finish(&mut self) -> Result<Option<Packed>> {
        if self.documents == 0 {
            return Ok(None);
        }
        let bytes = self.compressor.compress(&self.raw).map_err(|e| Error::run(format!("zstd: {e}")))?;
        let raw = u32::try_from(self.raw.len()).expect("a block has at most one long document");
        let packed = Packed { documents: self.documents, raw, bytes };
        self.raw.clear();
        self.raw.shrink_to(KEPT);
        (self.documents, self.file) = (0, None);
        Ok(Some(packed))
    }
}

/// Where a block is.
struct Block {
    offset: u64,
    /// The number of its first document.
    first: u32,
    raw: u32,
}

/// All documents.
pub struct Spool<'a> {
    file: ScratchFile<'a>,
    blocks: Vec<Block>,
    documents: u32,
}

impl<'a> Spool<'a> {
    pub fn new(scratch: &'a Scratch) -> Result<Self> {
        Ok(Self { file: scratch.file()?, blocks: Vec::new(), documents: 0 })
    }

    /// Appends a block, whose documents get the next numbers.
    pub fn append(&mut self, packed: &Packed) -> Result<()> {
        let block = Block { offset: self.file.len(), first: self.documents, raw: packed.raw };
        let documents = self.documents.checked_add(packed.documents).filter(|&n| n < u32::MAX);
        self.documents = documents.ok_or_else(|| {
            Error::user("the inputs have more than 4,294,967,294 documents; deduplicate them in several parts")
        })?;
        self.file.append(&packed.bytes)?;
        self.blocks.push(block);
        Ok(())
    }

    pub fn documents(&self) -> u32 {
        self.documents
    }

    /// Bytes of the index in memory.
    pub fn index_bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Block>()
    }

    /// All blocks by their indices, in parts that fit into memory.
    pub fn rounds(&self) -> impl Iterator<Item = Vec<usize>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let (start, mut bytes) = (next, 0);
            while bytes < ROUND && next < self.blocks.len() {
                bytes += self.blocks[next].raw as usize;
                next += 1;
            }
            (next > start).then(|| (start..next).collect())
        })
    }

    /// The numbers of the documents of some consecutive blocks.
    pub fn numbers(&self, blocks: &[usize]) -> Range<u32> {
        let first = |block: usize| self.blocks.get(block).map_or(self.documents, |block| block.first);
        let (Some(&start), Some(&last)) = (blocks.first(), blocks.last()) else { return 0..0 };
        first(start)..first(last + 1)
    }

    /// A reader for each of so many threads.
    pub fn readers(&self, threads: usize) -> Result<Vec<Reader<'_>>> {
        (0..threads).map(|_| self.reader()).collect()
    }

    pub fn reader(&self) -> Result<Reader<'_>> {
        let decompressor = Decompressor::new().map_err(|e| Error::run(format!("zstd: {e}")))?;
        Ok(Reader { spool: self, decompressor, packed: Vec::new(), raw: Vec::new(), block: None })
    }
}

/// Reads documents; it keeps the last block.
pub struct Reader<'s> {
    spool: &'s Spool<'s>,
    decompressor: Decompressor<'static>,
    packed: Vec<u8>,
    raw: Vec<u8>,
    /// The block in `raw`.
    block: Option<usize>,
}

impl Reader<'_> {
    /// The document with a number.
    pub fn document(&mut self, number: u32) -> Result<Stored<'_>> {
        let (blocks, documents) = (&self.spool.blocks, self.spool.documents);
        assert!(number < documents, "document {number} of {documents}");
        let block = blocks.partition_point(|block| block.first <= number) - 1;
        let before = (number - blocks[block].first) as usize;
        let mut documents = self.block(block)?;
        (0..before).for_each(|_| documents.pass());
        Ok(documents.next().expect("the block has it"))
    }

    /// The documents of a block in their order.
    pub fn block(&mut self, block: usize) -> Result<Documents<'_>> {
        if self.block != Some(block) {
            self.load(block)?;
        }
        Ok(Documents { rest: &self.raw, number: self.spool.blocks[block].first, file: Path::new("") })
    }

    fn load(&mut self, block: usize) -> Result<()> {
        let Spool { file, blocks, .. } = self.spool;
        let (start, raw) = (blocks[block].offset, blocks[block].raw as usize);
        let end = blocks.get(block + 1).map_or(file.len(), |next| next.offset);
        self.block = None;
        self.packed.clear();
        self.packed.shrink_to(KEPT);
        self.packed.resize((end - start) as usize, 0);
        file.read(start, &mut self.packed)?;
        self.raw.clear();
        self.raw.shrink_to(KEPT);
        self.raw.reserve(raw);
        let unpacked = self.decompressor.decompress_to_buffer(&self.packed, &mut self.raw);
        let unpacked = unpacked.map_err(|e| Error::run(format!("a temporary file reads back wrongly: {e}")))?;
        assert_eq!(unpacked, raw, "bytes of a block");
        self.block = Some(block);
        Ok(())
    }
}

/// A document in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'r> {
    pub number: u32,
    pub file: &'r Path,
    pub line: u64,
    /// Code points of the text.
    pub characters: u64,
    pub body: Body<'r>,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'r> {
    Text(&'r str),
    /// A line of JSON.
    Record(&'r str),
}

impl<'r> Stored<'r> {
    /// The text, which a record has under `key`.
    pub fn text(&self, key: &str) -> Cow<'r, str> {
        match self.body {
            Body::Text(text) => text.into(),
            Body::Record(record) => string_under(key, record).expect("it was read from this record before"),
        }
    }

    /// The document as it was read.
    pub fn document(&self, key: &str) -> Document {
        let record = match self.body {
            Body::Text(_) => None,
            Body::Record(record) => Some(record.to_string()),
        };
        Document { text: self.text(key).into_owned(), record, file: self.file.into(), line: self.line }
    }

    /// `FILE: line N`.
    pub fn place(&self) -> String {
        format!("{}: line {}", self.file.display(), self.line)
    }
}

/// The documents of a block.
pub struct Documents<'r> {
    rest: &'r [u8],
    number: u32,
    file: &'r Path,
}

impl<'r> Iterator for Documents<'r> {
    type Item = Stored<'r>;

    fn next(&mut self) -> Option<Self::Item> {
        let is_record = *self.rest.first()? == 1;
        let (number, (body, line, characters)) = (self.number, self.fields());
        let body = std::str::from_utf8(body).expect("it was written as text");
        let body = if is_record { Body::Record(body) } else { Body::Text(body) };
        Some(Stored { number, file: self.file, line, characters, body })
    }
}

impl<'r> Documents<'r> {
    /// Passes over a document without a look at its bytes.
    fn pass(&mut self) {
        self.fields();
    }

    /// Body, line and characters of the next document; its file becomes that of the iterator.
    fn fields(&mut self) -> (&'r [u8], u64, u64) {
        self.rest = &self.rest[1..];
        let file = self.part();
        if !file.is_empty() {
            self.file = Path::new(OsStr::from_bytes(file));
        }
        self.number += 1;
        (self.part(), self.integer(), self.integer())
    }

    fn part(&mut self) -> &'r [u8] {
        let length = u32::from_le_bytes(self.array());
        let (part, rest) = self.rest.split_at(length as usize);
        self.rest = rest;
        part
    }

    fn integer(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (array, rest) = self.rest.split_first_chunk().expect("a whole document");
        self.rest = rest;
        *array
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents of 0 to 100,000 bytes in three files, with and without records.
    fn documents() -> Vec<Document> {
        let files: Vec<Arc<Path>> = ["a.jsonl", "b.txt", "語.jsonl"].map(|file| Path::new(file).into()).into();
        let document = |n: usize| {
            let text = format!("{n}𠮟\r\n").repeat(if n % 50 == 7 { 10_000 } else { n * 31 % 400 });
            let record = (n % 3 != 1).then(|| format!("{{\"n\": {n}, \"text\": {}}}", serde_json::json!(text)));
            Document { text, record, file: files[n % 3].clone(), line: n as u64 + (1 << 40) }
        };
        (0..300).map(document).collect()
    }

    fn characters(document: &Document) -> u64 {
        document.text.chars().count() as u64
    }

    fn spooled<'a>(scratch: &'a Scratch, documents: &[Document]) -> Spool<'a> {
        let (mut spool, mut packer) = (Spool::new(scratch).unwrap(), Packer::new().unwrap());
        for document in documents {
            let full = packer.add(document, characters(document)).unwrap();
            full.iter().for_each(|packed| spool.append(packed).unwrap());
        }
        packer.finish().unwrap().iter().for_each(|packed| spool.append(packed).unwrap());
        assert!(packer.finish().unwrap().is_none());
        spool
    }

    fn same(stored: Stored, number: usize, document: &Document) {
        assert_eq!((stored.number as usize, stored.characters), (number, characters(document)));
        let again = stored.document("text");
        assert!(again.text == document.text && again.record == document.record, "document {number}");
        assert_eq!((again.place(), stored.place()), (document.place(), document.place()));
    }

    #[test]
    fn documents_are_read_again_by_number_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (scratch, documents) = (Scratch::new(folder.path()), documents());
        let spool = spooled(&scratch, &documents);
        assert_eq!(spool.documents() as usize, documents.len());
        let mut reader = spool.reader().unwrap();
        for step in [1, 7, 299, 150] {
            let numbers = (0..documents.len()).map(|n| n * step % documents.len());
            numbers.for_each(|n| same(reader.document(n as u32).unwrap(), n, &documents[n]));
        }
        let mut next = 0;
        for round in spool.rounds() {
            assert_eq!(spool.numbers(&round).start as usize, next);
            for &block in &round {
                for stored in reader.block(block).unwrap() {
                    same(stored, next, &documents[next]);
                    next += 1;
                }
            }
            assert_eq!(spool.numbers(&round).end as usize, next);
        }
        assert_eq!(next, documents.len());
    }

    #[test]
    fn no_document_is_no_block() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path());
        let spool = spooled(&scratch, &[]);
        assert_eq!((spool.documents(), spool.rounds().count(), scratch.spilled()), (0, 0, 0));
    }

    #[test]
    fn rounds_are_bounded_and_the_index_is_small() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(folder.path());
        let documents = vec![documents(); 12].concat();
        let spool = spooled(&scratch, &documents);
        let bytes = |round: &Vec<usize>| round.iter().map(|&block| spool.blocks[block].raw as usize).sum::<usize>();
        let rounds: Vec<usize> = spool.rounds().map(|round| bytes(&round)).collect();
        assert!(rounds.len() > 3 && rounds.iter().all(|&round| round < ROUND + (1 << 20)), "{rounds:?}");
        assert!(spool.blocks.len() * size_of::<Block>() < rounds.iter().sum::<usize>() / 1000);
    }
}
