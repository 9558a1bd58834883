//! JSON Lines: files with one JSON object per line, only ever appended to.
//!
//! A run that continues from an earlier step writes that step again: its line replaces those of this step and of all
//! later ones, which the run abandoned. A killed run may leave a torn line at the end: the next run ends it with a
//! newline before it appends, and the reader skips it.

use engine::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// A file open for appending.
pub struct Log<T> {
    path: PathBuf,
    file: Appended,
    of: PhantomData<T>,
}

impl<T: Serialize> Log<T> {
    /// Opens `path`, which is created if it does not exist.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || {
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            end_torn_line(&mut file)?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::io(path, e))?;
        Ok(Log { path: path.to_path_buf(), file: Appended::new(file), of: PhantomData })
    }

    /// Writes one line with a single `write`, so that a program that follows the file sees whole lines. Where it fails,
    /// it may be called again with the same line.
    pub fn append(&mut self, record: &T) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("a record has string keys only");
        line.push(b'\n');
        self.file.append(&line).map_err(|e| Error::io(&self.path, e))
    }
}

/// A file that only this process appends to, each time all bytes or none.
pub(super) struct Appended {
    file: File,
    /// The length to which it must be cut before anything is appended, after a write of which a part got through.
    whole: Option<u64>,
}

impl Appended {
    pub fn new(file: File) -> Appended {
        Appended { file, whole: None }
    }

    pub fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(len) = self.whole {
            self.cut(len)?;
            self.whole = None;
        }
        let len = self.file.metadata()?.len();
        self.file.write_all(bytes).inspect_err(|_| {
            // The failure that is reported is the write's.
            self.whole = self.cut(len).is_err().then_some(len);
        })
    }

    fn cut(&self, len: u64) -> std::io::Result<()> {
        if self.file.metadata()?.len() > len { self.file.set_len(len) } else { Ok(()) }
    }
}

/// Cuts off a last line that a killed process left torn; a whole one that lacks its newline gets it.
fn end_torn_line(file: &mut File) -> std::io::Result<()> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(());
    }
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    let start = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    match serde_json::from_slice::<serde::de::IgnoredAny>(&text[start..]) {
        Ok(_) => file.write_all(b"\n"),
        Err(_) => file.set_len(start as u64),
    }
}

/// The object of a line.
pub trait Record: DeserializeOwned {
    /// Its line replaces the earlier lines of this step and of later ones.
    fn step(&self) -> u64;

    /// Whether its values are possible; a line with impossible ones is damaged and skipped.
    fn is_sound(&self) -> bool;
}

/// A larger step is damage: f64 does not represent every integer beyond it.
pub const LAST_STEP: u64 = 1 << 53;

/// The contents of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines<T> {
    /// Sorted by step, one per step, without the steps that the run abandoned.
    pub records: Vec<T>,
    /// Numbers of the lines that hold no sound record; the first line is 1.
    pub skipped: Vec<usize>,
}

impl<T: Record> Lines<T> {
    /// The steps from 1 to `last` without a record, as ranges.
    pub fn missing(&self, last: u64) -> Vec<RangeInclusive<u64>> {
        let present = self.records.iter().map(Record::step).filter(|step| (1..=last).contains(step));
        let (mut missing, mut next) = (Vec::new(), 1);
        for step in present.chain([last + 1]) {
            if step > next {
                missing.push(next..=step - 1);
            }
            next = step + 1;
        }
        missing
    }
}

/// Bytes from the end of a file that [`read_last`] reads.
const TAIL: u64 = 1 << 20;

/// Reads a file. Blank lines count neither as records nor as skipped.
pub fn read<T: Record>(path: &Path) -> Result<Lines<T>> {
    read_lines(path, File::open(path).map(BufReader::new).map_err(|e| Error::io(path, e))?)
}

/// The records of the last megabyte of a file, the newest last; earlier ones may be left out.
pub fn read_last<T: Record>(path: &Path) -> Result<Vec<T>> {
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let start = file.metadata().map_err(io)?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start)).map_err(io)?;
    let mut tail = BufReader::new(file);
    if start > 0 {
        // The rest of a line that begins before.
        tail.read_until(b'\n', &mut Vec::new()).map_err(io)?;
    }
    Ok(read_lines(path, tail)?.records)
}

fn read_lines<T: Record>(path: &Path, text: impl BufRead) -> Result<Lines<T>> {
    let lines = text.split(b'\n');
    let (mut records, mut skipped) = (Vec::<T>::new(), Vec::new());
    for (at, line) in lines.enumerate() {
        let line = line.map_err(|e| Error::io(path, e))?;
        match serde_json::from_slice::<T>(&line) {
            Ok(record) if record.is_sound() => {
                while records.last().is_some_and(|last| last.step() >= record.step()) {
                    records.pop();
                }
                records.push(record);
            }
            _ if line.trim_ascii().is_empty() => {}
            _ => skipped.push(at + 1),
        }
    }
    Ok(Lines { records, skipped })
}
