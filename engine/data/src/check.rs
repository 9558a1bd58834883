//! `data check`: looks for everything that can be wrong in a pair of token files; each finding has its position.

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::data_file::blocks;
use super::idx::{IndexedFile, Stored};
use engine::error::Result;

/// Findings of one kind beyond this many are only counted.
const SHOWN: usize = 20;

/// The bounds that ids must keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub vocab_size: Option<u64>,
}

/// The findings of [`check`], and the counts of the files.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub sequences: usize,
    pub documents: usize,
    pub tokens: u64,
    pub kind: &'static str,
    /// `None` in a file without tokens.
    pub largest_id: Option<i64>,
    /// One line for each, except that findings of one kind beyond the first few share a line; the files are sound if
    /// there are none.
    pub findings: Vec<String>,
    /// The number of findings, those that share a line included.
    pub count: usize,
}

/// Reads both files from end to end. A file that does not even open is an error; everything else is a finding.
pub fn check(prefix: &Path, limits: Limits) -> Result<Report> {
    let file = IndexedFile::open(prefix)?;
    let (tokens, layout) = layout(&file)?;
    let (largest_id, ids) = ids(&file, limits)?;
    let found = [layout, documents(&file)?, ids, mask(&file)];
    let count = found.iter().map(|findings| findings.count).sum();
    let findings = found.into_iter().flat_map(Findings::lines).collect();
    let (sequences, documents, kind) = (file.sequences(), file.documents(), file.kind().name());
    Ok(Report { sequences, documents, tokens, kind, largest_id, findings, count })
}

/// Lengths and pointers: every sequence begins where the one before it ends, and the last ends with the file. Returns
/// the sum of the lengths, too.
fn layout(file: &IndexedFile) -> Result<(u64, Findings)> {
    let mut found = Findings::new("lengths or pointers");
    let (mut expected, mut before, mut tokens) = (0i64, None, 0);
    let bin = file.bin().bytes();
    let mut look = |i: usize, (length, pointer): Stored| {
        tokens += length.max(0) as u64;
        if length < 0 {
            found.add(|| format!("sequence {i}: a negative length, {length}"));
        }
        if pointer != expected {
            let kind = if before.is_some_and(|before| pointer <= before) { "does not ascend" } else { "is wrong" };
            found.add(|| {
                format!("sequence {i}: its pointer {kind}: byte {pointer}, where byte {expected} was expected")
            });
        }
        if file.bytes_of(length, pointer).is_none() {
            found.add(|| {
                format!("sequence {i}: {length} tokens from byte {pointer} lie outside the .bin of {bin} bytes")
            });
        }
        expected = pointer.saturating_add(i64::from(length.max(0)) * file.kind().size() as i64);
        before = Some(pointer);
    };
    for block in file.all_stored() {
        block?.into_iter().for_each(|(i, entry)| look(i, entry));
    }
    if expected != bin as i64 {
        found.add(|| format!("the sequences end at byte {expected} but the .bin has {bin} bytes"));
    }
    Ok((tokens, found))
}

/// The first byte of the mask that is neither 0 nor 1.
fn mask(file: &IndexedFile) -> Findings {
    let mut found = Findings::new("mask");
    if let Some(Err(wrong)) = file.mask().map(|mask| mask.check(0, 1)) {
        found.add(|| wrong.to_string());
    }
    found
}

fn documents(file: &IndexedFile) -> Result<Findings> {
    let mut found = Findings::new("document indices");
    let mut start = file.document_start(0)?;
    for i in 0..file.documents() {
        let end = file.document_start(i + 1)?;
        if end < start {
            found.add(|| format!("document {i}: the document index does not ascend: {start}, then {end}"));
        }
        start = end;
    }
    Ok(found)
}

/// The largest id, and every sequence that holds an id outside the vocabulary.
fn ids(file: &IndexedFile, limits: Limits) -> Result<(Option<i64>, Findings)> {
    let limit = limits.vocab_size.map_or(i64::from(u32::MAX), |n| i64::try_from(n).unwrap_or(i64::MAX) - 1);
    let blocks: Vec<_> = blocks(0..file.sequences() as u64, BLOCK).collect();
    let scan = |block: &Range<u64>| {
        let (mut largest, mut shown, mut count) = (None, Vec::new(), 0);
        for i in block.start as usize..block.end as usize {
            let (id, first) = scan(file, i, limit)?;
            shown.extend(first.filter(|_| shown.len() < SHOWN));
            (largest, count) = (largest.max(id), count + usize::from(first.is_some()));
        }
        Ok((largest, shown, count))
    };
    let scanned = blocks.par_iter().map(scan).collect::<Result<Vec<_>>>()?;
    let mut found = Findings::new("ids");
    for (_, shown, count) in &scanned {
        for &(i, at, id) in shown {
            found.add(|| format!("sequence {i}, token {at}: the id {id} is outside 0 ..= {limit}"));
        }
        found.count += count - shown.len();
    }
    Ok((scanned.iter().map(|s| s.0).max().flatten(), found))
}

/// An id outside the limits: its sequence, the token's number in it, and the id.
type Outside = (usize, u64, i64);

/// The largest id of sequence `i`, and the first one that is negative or above `limit`. A sequence that does not lie in
/// the file has none.
fn scan(file: &IndexedFile, i: usize, limit: i64) -> Result<(Option<i64>, Option<Outside>)> {
    let (length, pointer) = file.stored(i)?;
    let (mut largest, mut first) = (None, None);
    let bytes = file.bytes_of(length, pointer).unwrap_or_default();
    for part in blocks(bytes.clone(), PART) {
        let ids = file.bin().range(part.clone())?;
        let start = (part.start - bytes.start) / file.kind().size() as u64;
        for (at, id) in (start..).zip(file.kind().tokens(&ids)) {
            largest = largest.max(Some(id));
            if (id < 0 || id > limit) && first.is_none() {
                first = Some((i, at, id));
            }
        }
    }
    Ok((largest, first))
}

/// Sequences that one task scans.
const BLOCK: u64 = 4096;
/// Bytes of a sequence that are read at a time; a multiple of every token size.
const PART: u64 = 1 << 20;

struct Findings {
    what: &'static str,
    shown: Vec<String>,
    count: usize,
}

impl Findings {
    fn new(what: &'static str) -> Self {
        Self { what, shown: Vec::new(), count: 0 }
    }

    fn add(&mut self, line: impl FnOnce() -> String) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(line());
        }
    }

    fn lines(mut self) -> Vec<String> {
        if self.count > self.shown.len() {
            self.shown.push(format!("and {} more findings about {}", self.count - self.shown.len(), self.what));
        }
        self.shown
    }
}
