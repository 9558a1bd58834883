//! The identity of a run's data: the fingerprint that a resume compares, and the largest id of all sources.

use std::path::PathBuf;

use rayon::prelude::*;

use super::blend::normalize;
use super::feed::{Feed, Mixture};
use super::idx::{IndexedFile, TokenKind};
use engine::config::{Order, Source};
use engine::error::{Error, Result};

/// Bytes that one task scans; a multiple of every token size.
const CHUNK: usize = 4 << 20;

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdAt {
    pub id: u32,
    pub file: PathBuf,
    /// The `.idx` sequence, and the token in it.
    pub document: usize,
    pub offset: u64,
}

impl Feed {
    /// Everything that decides which tokens the run reads, as keys and values that a resume compares. Weights are
    /// normalized, so that other units change nothing; paths are left out, so that files may move.
    pub fn fingerprint(&self) -> Vec<(String, String)> {
        let order = match self.data.order {
            Order::Megatron => "megatron",
            Order::Sequential => "sequential",
        };
        let mut pairs = vec![
            ("data.order".to_string(), order.to_string()),
            ("data.split".to_string(), format!("{:?}", normalize(&self.data.split))),
            ("data.mask_document_boundaries".to_string(), self.data.mask_document_boundaries.to_string()),
        ];
        let (train, valid) = self.files.split_at(self.data.train.len());
        pairs.extend(describe("train", &self.data.train, train));
        pairs.extend(describe("valid", &self.data.valid, valid));
        pairs
    }

    /// The epochs of each source, which decide how it is shuffled. They follow from the number of steps: a resume with
    /// other steps may change them, and with them the order of the samples still to come.
    pub fn epochs(&self) -> Vec<(String, String)> {
        let name = |split: &'static str| {
            move |(i, part): (usize, &super::feed::Part)| {
                let plan = part.order.plan;
                let apart = if plan.separate { ", the last shuffled apart" } else { "" };
                (format!("data.{split}[{i}].epochs"), format!("{}{apart}", plan.epochs))
            }
        };
        let of = |mixture: &Mixture, split| mixture.parts.iter().enumerate().map(name(split)).collect::<Vec<_>>();
        let mut pairs = of(&self.train, "train");
        pairs.extend(self.valid.iter().flat_map(|m| of(m, "valid")));
        pairs
    }

    /// The largest id in share `part` of `parts` of the tokens of all sources; `None` where the share is empty. A
    /// negative id, one above 32 bits, or an invalid byte of a mask is an error.
    pub fn largest_id(&self, part: usize, parts: usize) -> Result<Option<IdAt>> {
        for mask in self.files.iter().filter_map(IndexedFile::mask) {
            mask.check(part, parts)?;
        }
        let shares = self.files.iter().map(|file| largest_in(file, part, parts)).collect::<Result<Vec<_>>>()?;
        Ok(shares.into_iter().flatten().reduce(|a, b| if b.id > a.id { b } else { a }))
    }
}

fn describe(split: &str, sources: &[Source], files: &[IndexedFile]) -> Vec<(String, String)> {
    let weights: Vec<f64> = sources.iter().filter_map(|s| s.weight).collect();
    let shares = normalize(&weights);
    let one = |(i, file): (usize, &IndexedFile)| {
        let key = |name: &str| format!("data.{split}[{i}].{name}");
        let tokens = file.bin().len() / file.kind().size();
        let mut pairs = vec![
            (key("documents"), file.sequences().to_string()),
            (key("tokens"), tokens.to_string()),
            (key("idx"), short_hash(&[file.idx()])),
            (key("bin"), short_hash(&[head(file.bin()), tail(file.bin())])),
            (key("weight"), shares.get(i).map_or("none".to_string(), |w| w.to_string())),
        ];
        pairs.extend(file.mask().map(|mask| (key("mask"), mask.hash()[..16].to_string())));
        pairs
    };
    files.iter().enumerate().flat_map(one).collect()
}

/// The first and the last mebibyte are enough to tell corpora apart without reading them whole.
fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(1 << 20)]
}

fn tail(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(1 << 20)..]
}

fn short_hash(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| _ = hasher.update(part));
    hasher.finalize().to_hex()[..16].to_string()
}

fn largest_in(file: &IndexedFile, part: usize, parts: usize) -> Result<Option<IdAt>> {
    assert!(part < parts, "part {part} of {parts}");
    let (kind, size) = (file.kind(), file.kind().size());
    let tokens = file.bin().len() / size;
    let bound = |p: usize| (tokens as u128 * p as u128 / parts as u128) as usize;
    let (first, end) = (bound(part), bound(part + 1));
    let bytes = &file.bin()[first * size..end * size];
    let extremes = bytes.par_chunks(CHUNK).map(|chunk| extremes(kind, chunk)).collect::<Vec<_>>();
    let place = |chunk: usize, id: i64| {
        let start = chunk * CHUNK;
        let bytes = &bytes[start..(start + CHUNK).min(bytes.len())];
        let at = kind.tokens(bytes).position(|x| x == id).expect("the extreme was found in this chunk");
        document_of(file, first + start / size + at)
    };
    for (chunk, &(least, most)) in extremes.iter().enumerate() {
        let wrong = if least < 0 { least } else { most };
        if u32::try_from(wrong).is_err() {
            let (document, offset) = place(chunk, wrong);
            let name = file.bin_path();
            return Err(Error::user(format!(
                "{}: sequence {document}, token {offset}: the id {wrong} is in no vocabulary; see `swallow-engine data \
                 check {}`",
                name.display(),
                file.prefix().display()
            )));
        }
    }
    let best = extremes.iter().enumerate().reduce(|a, b| if b.1.1 > a.1.1 { b } else { a });
    Ok(best.map(|(chunk, &(_, id))| {
        let (document, offset) = place(chunk, id);
        IdAt { id: id as u32, file: file.bin_path(), document, offset }
    }))
}

/// Smallest and largest id of a chunk that is not empty.
fn extremes(kind: TokenKind, bytes: &[u8]) -> (i64, i64) {
    fn fold<T: Copy + Ord + Into<i64>, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> (i64, i64) {
        let first = read(bytes[..N].try_into().expect("N bytes"));
        let widen = |(least, most): (T, T), b: &[u8]| {
            let x = read(b.try_into().expect("N bytes"));
            (least.min(x), most.max(x))
        };
        let (least, most) = bytes.chunks_exact(N).fold((first, first), widen);
        (least.into(), most.into())
    }
    match kind {
        TokenKind::U8 => fold(bytes, u8::from_le_bytes),
        TokenKind::I8 => fold(bytes, i8::from_le_bytes),
        TokenKind::I16 => fold(bytes, i16::from_le_bytes),
        TokenKind::U16 => fold(bytes, u16::from_le_bytes),
        TokenKind::I32 => fold(bytes, i32::from_le_bytes),
        TokenKind::I64 => fold(bytes, i64::from_le_bytes),
    }
}

/// Sequence and offset of token number `token` of the `.bin`, by the pointers of a sound file.
fn document_of(file: &IndexedFile, token: usize) -> (usize, u64) {
    let byte = (token * file.kind().size()) as i64;
    let (mut low, mut high) = (0, file.sequences());
    while low < high {
        let middle = (low + high) / 2;
        if file.stored_pointer(middle) <= byte {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let document = low.saturating_sub(1);
    let start = if file.sequences() == 0 { 0 } else { file.stored_pointer(document) };
    (document, ((byte - start).max(0) as u64) / file.kind().size() as u64)
}
