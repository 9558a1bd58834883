//! The identity of a run's data: the fingerprint that a resume compares, and the largest id of all sources.

use std::ops::Range;
use std::path::PathBuf;

use rayon::prelude::*;

use super::blend::normalize;
use super::data_file::{DataFile, blocks, changed};
use super::feed::Feed;
use super::feed::mixture::Part;
use super::idx::{IndexedFile, TokenKind};
use engine::config::{Order, TrainSource};
use engine::error::{Error, Result};

/// Bytes that one task scans; a multiple of every token size.
const CHUNK: u64 = 1 << 20;
/// The first and the last mebibyte are enough to tell corpora apart without reading them whole.
const END: u64 = 1 << 20;

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
    /// Everything that decides which tokens the run reads up to `step` and in the stage that this is in, as keys and
    /// values that a resume compares; later stages may still change. Weights are normalized, so that other units change
    /// nothing; paths are left out, so that files may move, and so are names. The first stage has the keys of
    /// `data.train`, which is one stage. The files are described as they were when the feed was opened.
    pub fn fingerprint(&self, step: u64) -> Vec<(String, String)> {
        let order = match self.data.order {
            Order::Megatron => "megatron",
            Order::Sequential => "sequential",
        };
        let mut pairs = vec![
            ("data.order".to_string(), order.to_string()),
            ("data.split".to_string(), format!("{:?}", normalize(&self.data.split))),
            ("data.mask_document_boundaries".to_string(), self.data.mask_document_boundaries.to_string()),
        ];
        let (train, valid) = self.described.split_at(self.sources.len());
        pairs.extend(self.describe_stages(step, train));
        for (i, values) in valid.iter().enumerate() {
            pairs.extend(values.iter().map(|(name, value)| (format!("data.valid[{i}].{name}"), value.clone())));
            pairs.extend(self.data.valid[i].pack.then(|| (format!("data.valid[{i}].pack"), true.to_string())));
        }
        pairs
    }

    /// The stages that begin before `step` or at the start, each with its sources, and with its end where the next one
    /// has begun.
    fn describe_stages(&self, step: u64, files: &[Description]) -> Vec<(String, String)> {
        let (mut pairs, mut first) = (Vec::new(), vec![None; files.len()]);
        let stages = self.data.stages();
        let starts = stages
            .iter()
            .map(|stage| stage.until_step)
            .scan(0, |start, end| Some(std::mem::replace(start, end.unwrap_or(*start))));
        let begun = starts.take_while(|&start| start == 0 || start < step).count();
        for (number, stage) in stages.iter().enumerate().take(begun) {
            let list = canonical(number);
            let weights: Vec<f64> = stage.sources.iter().filter_map(|source| source.weight).collect();
            let shares = normalize(&weights);
            for (i, &source) in self.train.stages[number].members.iter().enumerate() {
                let key = |name: &str| format!("{list}[{i}].{name}");
                pairs.extend(files[source].iter().map(|(name, value)| (key(name), value.clone())));
                let weight = shares.get(i).map_or("none".to_string(), |weight| weight.to_string());
                pairs.push((key("weight"), weight));
                pairs.extend(self.sources[source].pack.then(|| (key("pack"), true.to_string())));
                // A source that goes on where an earlier stage left it reads other tokens than a copy of it would.
                match &first[source] {
                    None => first[source] = Some(format!("{list}[{i}]")),
                    Some(first) => pairs.push((key("same_source_as"), first.clone())),
                }
            }
            if let Some(end) = stage.until_step.filter(|_| number + 1 < begun) {
                pairs.push((format!("data.stage[{number}].until_step"), end.to_string()));
            }
        }
        pairs
    }

    /// A key of [`Feed::fingerprint`] or [`Feed::epochs`], or a value that is one, as this run's configuration spells
    /// it.
    pub fn spelled(&self, key: &str) -> String {
        match key.strip_prefix("data.train[") {
            Some(rest) if !self.data.stage.is_empty() => format!("data.stage[0].train[{rest}"),
            _ => key.to_string(),
        }
    }

    /// The epochs of each source, which decide how it is shuffled, by the key of its first entry. They follow from the
    /// number of steps and from the stages: a resume with others may change them, and with them the order of the
    /// samples still to come.
    pub fn epochs(&self) -> Vec<(String, String)> {
        let value = |part: &Part| {
            let plan = part.order.plan();
            let apart = if plan.separate { ", the last shuffled apart" } else { "" };
            format!("{}{apart}", plan.epochs)
        };
        let key = |source: &TrainSource| source.key.replace("data.stage[0].train", "data.train");
        let train = self.sources.iter().zip(&self.train.parts);
        let train = train.map(|(source, part)| (format!("{}.epochs", key(source)), value(part)));
        let valid = self.valid.iter().enumerate().flat_map(|(i, valid)| {
            valid.mixture.parts.iter().map(move |part| (format!("data.valid[{i}].epochs"), value(part)))
        });
        train.chain(valid).collect()
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

/// The key of a stage's sources in a fingerprint.
fn canonical(stage: usize) -> String {
    if stage == 0 { "data.train".to_string() } else { format!("data.stage[{stage}].train") }
}

/// The fingerprint of a checkpoint, without keys that older programs wrote and that decide nothing any more: the
/// weights of validation sets.
pub fn comparable(saved: Vec<(String, String)>) -> Vec<(String, String)> {
    let decides = |key: &str| !(key.starts_with("data.valid[") && key.ends_with("].weight"));
    saved.into_iter().filter(|(key, _)| decides(key)).collect()
}

/// The values by which a resume tells one file from another, by their names.
pub(super) type Description = Vec<(&'static str, String)>;

/// Reads what tells this file from another.
pub(super) fn describe(file: &IndexedFile) -> Result<Description> {
    let (idx, bin) = (file.idx(), file.bin());
    let ends = [0..bin.bytes().min(END), bin.bytes().saturating_sub(END)..bin.bytes()];
    let mut pairs = vec![
        ("documents", file.sequences().to_string()),
        ("tokens", file.stored_tokens().to_string()),
        ("idx", short_hash(idx, blocks(0..idx.bytes(), CHUNK))?),
        ("bin", short_hash(bin, ends)?),
    ];
    let mask = file.mask().map(|mask| mask.hash()).transpose()?;
    pairs.extend(mask.map(|hash| ("mask", hash[..16].to_string())));
    Ok(pairs)
}

fn short_hash(file: &DataFile, parts: impl IntoIterator<Item = Range<u64>>) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&file.range(part)?);
    }
    Ok(hasher.finalize().to_hex()[..16].to_string())
}

fn largest_in(file: &IndexedFile, part: usize, parts: usize) -> Result<Option<IdAt>> {
    assert!(part < parts, "part {part} of {parts}");
    let (kind, size) = (file.kind(), file.kind().size() as u64);
    let bound = |p: usize| (u128::from(file.stored_tokens()) * p as u128 / parts as u128) as u64 * size;
    let chunks: Vec<_> = blocks(bound(part)..bound(part + 1), CHUNK).collect();
    let scan = |bytes: &mut Vec<u8>, chunk: &Range<u64>| {
        bytes.resize((chunk.end - chunk.start) as usize, 0);
        file.bin().read(chunk.start, bytes).map(|()| extremes(kind, bytes))
    };
    let extremes = chunks.par_iter().map_init(Vec::new, scan).collect::<Result<Vec<_>>>()?;
    // The token with this id that is the first of its chunk.
    let place = |chunk: usize, id: i64| {
        let bytes = file.bin().range(chunks[chunk].clone())?;
        let at = kind.tokens(&bytes).position(|x| x == id);
        let at = at.ok_or_else(|| changed(file.bin().path(), "its content has changed while it was read"))?;
        document_of(file, chunks[chunk].start / size + at as u64)
    };
    for (chunk, &(least, most)) in extremes.iter().enumerate() {
        let wrong = if least < 0 { least } else { most };
        if u32::try_from(wrong).is_err() {
            let (document, offset) = place(chunk, wrong)?;
            return Err(Error::user(format!(
                "{}: sequence {document}, token {offset}: the id {wrong} is in no vocabulary; see `swallow-engine data \
                 check {}`",
                file.bin().path().display(),
                file.prefix().display()
            )));
        }
    }
    let best = extremes.iter().enumerate().reduce(|a, b| if b.1.1 > a.1.1 { b } else { a });
    let found = |(chunk, &(_, id)): (usize, &(i64, i64))| {
        let (document, offset) = place(chunk, id)?;
        Ok(IdAt { id: id as u32, file: file.bin().path().to_path_buf(), document, offset })
    };
    best.map(found).transpose()
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
fn document_of(file: &IndexedFile, token: u64) -> Result<(usize, u64)> {
    let size = file.kind().size() as u64;
    let byte = (token * size) as i64;
    let (mut low, mut high) = (0, file.sequences());
    while low < high {
        let middle = (low + high) / 2;
        if file.stored_pointer(middle)? <= byte {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let document = low.saturating_sub(1);
    let start = if file.sequences() == 0 { 0 } else { file.stored_pointer(document)? };
    Ok((document, (byte - start).max(0) as u64 / size))
}
