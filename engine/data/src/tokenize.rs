//! `data tokenize`: texts, pairs or chats in, one indexed token file out, on all cores.
//!
//! A reader hands chunks to the workers and, in the same order, the receivers of their results to the writer, so the
//! output does not depend on the number of workers. Memory is bounded: at most `2 * workers + 2` chunks and
//! [`IN_FLIGHT`] bytes of text are between reader and writer, and the tokenizer bounds what it encodes as a whole.

mod records;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::budget::{Budget, Share};
use super::idx::TokenKind;
use super::meta::Meta;
use super::text::LONGEST_LINE;
use super::tokenizer::Tokenizer;
use super::writer::IndexWriter;
use engine::error::{Error, Result, counted};
pub(crate) use records::Document;
pub use records::Records;
use records::{Chunk, Encoded, EncodedPart};

/// Bytes of text between reader and writer. A byte takes up to 10 bytes of memory: itself, as decoded from JSON, and
/// its ids. The help of `data tokenize` states the resulting memory.
const IN_FLIGHT: usize = LONGEST_LINE;

/// Bad records beyond this many are only counted.
const NAMED: usize = 10;

/// The inputs and settings of a tokenization.
pub struct Job<'a> {
    pub records: Records<'a>,
    pub output: PathBuf,
    pub tokenizer: &'a Tokenizer,
    /// The id put before every document, and the one put after it.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Leave out bad records and count them, instead of stopping at the first.
    pub skip_bad: bool,
    /// Threads that encode, at least one.
    pub workers: usize,
}

/// Counts so far; at the end, those of the whole job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes on disk read.
    pub read: u64,
    /// Bytes of text tokenized.
    pub text: u64,
    pub documents: u64,
    pub tokens: u64,
    /// Documents without any token, which are left out.
    pub empty: u64,
    /// Tokens that count in the loss; all of them where there is no mask.
    pub counted: u64,
    /// The number of bad records, and the errors of the first ten.
    pub bad: u64,
    pub first_bad: Vec<String>,
}

/// Tokenizes; calls `progress` after every chunk. Nothing stands under the output's name before the end.
pub fn tokenize(job: &Job, mut progress: impl FnMut(&Progress)) -> Result<Progress> {
    job.records.check()?;
    let kind = TokenKind::for_vocab(job.tokenizer.vocab_size());
    let writer = match job.records.have_masks() {
        true => IndexWriter::create_masked(&job.output, kind)?,
        false => IndexWriter::create(&job.output, kind)?,
    };
    let mut output = Output { writer, job, in_bad_document: false, open_counted: 0, done: Progress::default() };
    let read = Arc::new(AtomicU64::new(0));
    let cut = |text: &[u8]| job.tokenizer.cut(text);
    let files = job.records.files();
    let chunks = job.records.chunks(&files, &cut, &read);
    let in_flight = Budget::new(IN_FLIGHT);
    std::thread::scope(|scope| {
        let (to_workers, work) = bounded(job.workers);
        let (to_writer, results) = bounded(job.workers);
        let in_flight = &in_flight;
        scope.spawn(move || hand_out(job, chunks, in_flight, &to_workers, &to_writer));
        for _ in 0..job.workers {
            let work = work.clone();
            scope.spawn(move || encode_all(job, &work));
        }
        drop(work);
        for result in results {
            let result: Receiver<Result<Encoded>> = result;
            let encoded = result.recv().map_err(|_| Error::run("a worker of the tokenizer died"))??;
            output.write(encoded)?;
            output.done.read = read.load(Ordering::Relaxed);
            progress(&output.done);
        }
        Ok(())
    })?;
    let Output { writer, done, .. } = output;
    if done.documents == 0 {
        return Err(nothing(&done));
    }
    let mut meta = Meta::new(job.tokenizer, job.bos, job.eos)?;
    job.records.describe(&mut meta);
    meta.special_tokens = job.tokenizer.reads_control_tokens().map(str::to_string);
    writer.finish_with(&meta)?;
    Ok(done)
}

fn nothing(done: &Progress) -> Error {
    let Progress { bad, first_bad, .. } = done;
    match *bad {
        0 => Error::user("the inputs hold no text: there is nothing to write"),
        _ => Error::user(format!(
            "the inputs hold no text that can be used: there is nothing to write. {} left out:\n  {}",
            counted(*bad as usize, "bad record"),
            first_bad.join("\n  ")
        )),
    }
}

type Work<'a> = (Chunk, Share<'a>, Sender<Result<Encoded<'a>>>);

/// Returns after the last chunk, at the first error, or when the receivers are gone.
fn hand_out<'a>(
    job: &Job,
    chunks: records::Chunks,
    in_flight: &'a Budget,
    to_workers: &Sender<Work<'a>>,
    to_writer: &Sender<Receiver<Result<Encoded<'a>>>>,
) {
    for chunk in chunks {
        let (answer, result) = bounded(1);
        if to_writer.send(result).is_err() {
            return;
        }
        let go_on = match chunk {
            Ok(chunk) => {
                let is_last = chunk.is_cut_short() && !job.skip_bad;
                let share = in_flight.take(chunk.size());
                to_workers.send((chunk, share, answer)).is_ok() && !is_last
            }
            Err(e) => {
                answer.send(Err(e)).ok();
                false
            }
        };
        if !go_on {
            return;
        }
    }
}

fn encode_all<'a>(job: &Job, work: &Receiver<Work<'a>>) {
    for (chunk, share, answer) in work {
        // The writer may have stopped at an earlier error.
        answer.send(Ok(job.records.encode(job, &chunk, share))).ok();
    }
}

/// The state of the writing thread.
struct Output<'a> {
    writer: IndexWriter,
    job: &'a Job<'a>,
    /// A part of the document that is being written was bad, so its further parts are left out.
    in_bad_document: bool,
    /// Tokens of the document that is being written that count.
    open_counted: u64,
    done: Progress,
}

impl Output<'_> {
    fn write(&mut self, encoded: Encoded) -> Result<()> {
        let mut start = 0;
        for part in encoded.parts {
            let range = start..part.end;
            start = part.end;
            self.write_part(&encoded.ids[range.clone()], encoded.mask.get(range), part)?;
        }
        self.done.text += encoded.text;
        Ok(())
    }

    /// `mask` is given where the records have masks.
    fn write_part(&mut self, ids: &[u32], mask: Option<&[u8]>, part: EncodedPart) -> Result<()> {
        self.in_bad_document &= !part.first;
        if let Some(problem) = part.problem {
            if !self.job.skip_bad {
                return Err(Error::user(problem));
            }
            self.writer.discard_document()?;
            self.open_counted = 0;
            if !self.in_bad_document {
                self.done.bad += 1;
                self.done.first_bad.extend(Some(problem).filter(|_| self.done.bad <= NAMED as u64));
            }
            self.in_bad_document = true;
        } else if ids.is_empty() && part.first && part.last {
            self.done.empty += 1;
        } else if !self.in_bad_document {
            self.push(ids, mask)?;
            if part.last {
                self.done.tokens += self.writer.end_document()?;
                self.done.counted += std::mem::take(&mut self.open_counted);
                self.done.documents += 1;
            }
        }
        Ok(())
    }

    fn push(&mut self, ids: &[u32], mask: Option<&[u8]>) -> Result<()> {
        match mask.filter(|_| self.job.records.have_masks()) {
            Some(mask) => {
                self.open_counted += mask.iter().map(|&byte| u64::from(byte)).sum::<u64>();
                self.writer.push_masked(ids, mask)
            }
            None => {
                self.open_counted += ids.len() as u64;
                self.writer.push(ids)
            }
        }
    }
}

#[cfg(test)]
mod tests;
