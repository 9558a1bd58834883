//! `data tokenize`: text files in, one indexed token file out, on all cores.
//!
//! A reader hands chunks to the workers, and in the same order the places where their results will come to the
//! writer, so the output does not depend on the number of workers. Both queues are bounded: at most
//! `2 * workers + 2` chunks are between reader and writer, each about a mebibyte of text, or one document where
//! documents are longer and the tokenizer allows no cut (at most [`super::text::LONGEST`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::idx::TokenKind;
use super::meta::Meta;
use super::text::{Chunk, Chunks, total_bytes};
use super::tokenizer::Tokenizer;
use super::writer::IndexWriter;
use engine::error::{Error, Result};

/// What to tokenize, and how.
pub struct Job<'a> {
    pub inputs: &'a [PathBuf],
    pub output: PathBuf,
    pub tokenizer: &'a Tokenizer,
    /// The key of the text in JSON lines.
    pub key: String,
    /// The id put before every document, and the one put after it.
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    /// Threads that encode, at least one.
    pub workers: usize,
}

/// How far it got; at the end, what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes on disk read, and to read.
    pub read: u64,
    pub total: u64,
    /// Bytes of text tokenized.
    pub text: u64,
    pub documents: u64,
    pub tokens: u64,
    /// Documents without any token, which are left out.
    pub empty: u64,
}

/// The ids of a chunk. The last document may go on in the next chunk.
#[derive(Default)]
struct Encoded {
    ids: Vec<u32>,
    /// Where in `ids` documents end.
    ends: Vec<usize>,
    text: u64,
    empty: u64,
}

/// Tokenizes; calls `progress` after every chunk. Nothing stands under the output's name before the end.
pub fn tokenize(job: &Job, mut progress: impl FnMut(&Progress)) -> Result<Progress> {
    let mut done = Progress { total: total_bytes(job.inputs)?, ..Progress::default() };
    let mut writer = IndexWriter::create(&job.output, TokenKind::for_vocab(job.tokenizer.vocab_size()))?;
    let read = Arc::new(AtomicU64::new(0));
    let cut = |text: &[u8]| job.tokenizer.cut(text);
    let chunks = Chunks::new(job.inputs, &cut, read.clone());
    std::thread::scope(|scope| {
        let (to_workers, work) = bounded(job.workers);
        let (to_writer, results) = bounded(job.workers);
        scope.spawn(move || hand_out(chunks, &to_workers, &to_writer));
        for _ in 0..job.workers {
            let work = work.clone();
            scope.spawn(move || encode_all(job, &work));
        }
        drop(work);
        for result in results {
            let result: Receiver<Result<Encoded>> = result;
            let encoded = result.recv().map_err(|_| Error::run("a worker of the tokenizer died"))??;
            write(&mut writer, &encoded)?;
            done.read = read.load(Ordering::Relaxed).min(done.total);
            done.text += encoded.text;
            done.documents += encoded.ends.len() as u64;
            done.tokens += encoded.ids.len() as u64;
            done.empty += encoded.empty;
            progress(&done);
        }
        Ok(())
    })?;
    if done.documents == 0 {
        return Err(Error::user("the inputs hold no text: there is nothing to write"));
    }
    writer.finish()?;
    Meta::of(job)?.write(&job.output)?;
    done.read = done.total;
    Ok(done)
}

type Work = (Chunk, Sender<Result<Encoded>>);

/// Ends after the last chunk, at the first error, or when the other side is gone.
fn hand_out(chunks: Chunks, to_workers: &Sender<Work>, to_writer: &Sender<Receiver<Result<Encoded>>>) {
    for chunk in chunks {
        let (answer, result) = bounded(1);
        if to_writer.send(result).is_err() {
            return;
        }
        let sent = match chunk {
            Ok(chunk) => to_workers.send((chunk, answer)).is_ok(),
            Err(e) => {
                answer.send(Err(e)).ok();
                false
            }
        };
        if !sent {
            return;
        }
    }
}

fn encode_all(job: &Job, work: &Receiver<Work>) {
    for (chunk, answer) in work {
        // The writer may have stopped at an earlier error.
        answer.send(encode(job, &chunk)).ok();
    }
}

fn encode(job: &Job, chunk: &Chunk) -> Result<Encoded> {
    let mut out = Encoded { text: chunk.size() as u64, ..Encoded::default() };
    for part in chunk.parts(&job.key)? {
        let ids = match part.first {
            true => job.tokenizer.encode_long(&part.text)?,
            false => job.tokenizer.encode_long_rest(&part.text)?,
        };
        if ids.is_empty() && part.first && part.last {
            out.empty += 1;
            continue;
        }
        out.ids.extend(job.bos.filter(|_| part.first));
        out.ids.extend(ids);
        if part.last {
            out.ids.extend(job.eos);
            out.ends.push(out.ids.len());
        }
    }
    Ok(out)
}

fn write(writer: &mut IndexWriter, encoded: &Encoded) -> Result<()> {
    let mut start = 0;
    for &end in &encoded.ends {
        writer.push(&encoded.ids[start..end])?;
        writer.end_document()?;
        start = end;
    }
    writer.push(&encoded.ids[start..])
}

#[cfg(test)]
mod tests;
