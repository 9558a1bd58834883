//! `data check`: looks for everything that can be wrong in a pair of token files; each finding has its position.

use std::path::Path;

use rayon::prelude::*;

use super::idx::IndexedFile;
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
    let tokens = (0..file.sequences()).map(|i| file.length(i)).sum();
    let (largest_id, ids) = ids(&file, limits);
    let found = [layout(&file), documents(&file), ids, mask(&file)];
    let count = found.iter().map(|findings| findings.count).sum();
    let findings = found.into_iter().flat_map(Findings::lines).collect();
    let (sequences, documents, kind) = (file.sequences(), file.documents(), file.kind().name());
    Ok(Report { sequences, documents, tokens, kind, largest_id, findings, count })
}

/// Lengths and pointers: every sequence begins where the one before it ends, and the last ends with the file.
fn layout(file: &IndexedFile) -> Findings {
    let mut found = Findings::new("lengths or pointers");
    let mut expected = 0i64;
    for i in 0..file.sequences() {
        let (length, pointer) = (file.stored_length(i), file.stored_pointer(i));
        if length < 0 {
            found.add(|| format!("sequence {i}: a negative length, {length}"));
        }
        if pointer != expected {
            let kind = if i > 0 && pointer <= file.stored_pointer(i - 1) { "does not ascend" } else { "is wrong" };
            found.add(|| {
                format!("sequence {i}: its pointer {kind}: byte {pointer}, where byte {expected} was expected")
            });
        }
        if file.bytes(i).is_err() {
            let bin = file.bin().len();
            found.add(|| {
                format!("sequence {i}: {length} tokens from byte {pointer} lie outside the .bin of {bin} bytes")
            });
        }
        expected = pointer.saturating_add(i64::from(length.max(0)) * file.kind().size() as i64);
    }
    if expected != file.bin().len() as i64 {
        let bin = file.bin().len();
        found.add(|| format!("the sequences end at byte {expected} but the .bin has {bin} bytes"));
    }
    found
}

/// The first byte of the mask that is neither 0 nor 1.
fn mask(file: &IndexedFile) -> Findings {
    let mut found = Findings::new("mask");
    if let Some(Err(wrong)) = file.mask().map(|mask| mask.check(0, 1)) {
        found.add(|| wrong.to_string());
    }
    found
}

fn documents(file: &IndexedFile) -> Findings {
    let mut found = Findings::new("document indices");
    for i in 0..file.documents() {
        let (start, end) = (file.document_start(i), file.document_start(i + 1));
        if end < start {
            found.add(|| format!("document {i}: the document index does not ascend: {start}, then {end}"));
        }
    }
    found
}

/// The largest id, and every sequence that holds an id outside the vocabulary.
fn ids(file: &IndexedFile, limits: Limits) -> (Option<i64>, Findings) {
    let limit = limits.vocab_size.map_or(i64::from(u32::MAX), |n| i64::try_from(n).unwrap_or(i64::MAX) - 1);
    let scan = |i: usize| {
        let ids = file.kind().tokens(file.bytes(i).unwrap_or_default());
        let (mut largest, mut first) = (None, None);
        for (at, id) in ids.enumerate() {
            largest = largest.max(Some(id));
            if (id < 0 || id > limit) && first.is_none() {
                first = Some((i, at, id));
            }
        }
        (largest, first)
    };
    let blocks = file.sequences().div_ceil(BLOCK);
    let scanned: Vec<_> = (0..blocks)
        .into_par_iter()
        .map(|b| {
            let block = (b * BLOCK..((b + 1) * BLOCK).min(file.sequences())).map(scan);
            block.fold((None, Vec::new(), 0usize), |(largest, mut shown, count), (id, first)| {
                shown.extend(first.filter(|_| shown.len() < SHOWN));
                (largest.max(id), shown, count + usize::from(first.is_some()))
            })
        })
        .collect();
    let mut found = Findings::new("ids");
    for (_, shown, count) in &scanned {
        for &(i, at, id) in shown {
            found.add(|| format!("sequence {i}, token {at}: the id {id} is outside 0 ..= {limit}"));
        }
        found.count += count - shown.len();
    }
    (scanned.iter().map(|s| s.0).max().flatten(), found)
}

/// Sequences that one task scans.
const BLOCK: usize = 4096;

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
