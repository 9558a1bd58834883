//! Scores: each record gets the classifier's probability under a key.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data::text::Inputs;
use engine::error::{Error, Result};

use super::model::Classifier;
use crate::documents::{Bad, Batch, Document, Skipped, batches};
use crate::ordered;
use crate::output::Output;
use crate::record;

/// Bytes of memory for a byte of a batch: itself, the text and the record of its documents, and the lines made of them.
pub(super) const MEMORY_PER_BYTE: usize = 4;

/// The inputs and settings of a scoring.
pub struct ScoreJob<'a> {
    pub inputs: &'a Inputs,
    pub classifier: &'a Classifier,
    /// Its name ends in .jsonl, .jsonl.gz or .jsonl.zst.
    pub output: PathBuf,
    /// The key that gets the score; a value that is there is replaced.
    pub score_key: &'a str,
    pub bad: Bad,
    /// Threads that score, at least one.
    pub workers: usize,
    /// Bytes of memory for documents between reading and writing; a document that is larger passes alone.
    pub memory: usize,
}

/// What a scoring has done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scored {
    pub documents: u64,
    /// Mean of the scores; 0 without documents.
    pub mean: f64,
    pub skipped: Skipped,
}

/// Scores all documents; calls `progress` with the bytes read so far after every batch. Nothing stands under the
/// output's name before the end.
pub fn score(job: &ScoreJob, mut progress: impl FnMut(u64)) -> Result<Scored> {
    let key = &job.inputs.key;
    if job.score_key == key {
        return Err(Error::user(format!("\"{key}\" is the key of the text; give the score another one")));
    }
    job.inputs.check()?;
    let mut output = Output::create(&job.output)?;
    let read = Arc::new(AtomicU64::new(0));
    let mut done = Scored::default();
    let mut sum = 0.0;
    let scored = |batch: Batch| {
        let documents = batch.documents(key);
        drop(batch);
        Ok(documents.into_iter().map(|document| scored(job, &document?)).collect::<Vec<_>>())
    };
    let memory = job.memory / MEMORY_PER_BYTE;
    ordered::map(batches(job.inputs, read.clone()), job.workers, memory, scored, |lines| {
        for line in lines {
            match line {
                Ok((line, score)) => {
                    output.line(&line)?;
                    done.documents += 1;
                    sum += f64::from(score);
                }
                Err(message) => job.bad.record(message, &mut done.skipped)?,
            }
        }
        progress(read.load(Ordering::Relaxed));
        Ok(())
    })?;
    output.finish()?;
    done.mean = if done.documents == 0 { 0.0 } else { sum / done.documents as f64 };
    Ok(done)
}

/// The line of a document with its score, which is written with the digits that tell it from every other f32.
fn scored(job: &ScoreJob, document: &Document) -> std::result::Result<(String, f32), String> {
    let score = job.classifier.score(&document.text);
    let line = document.as_json(&job.inputs.key, &document.text)?;
    let line = record::with_value(&line, job.score_key, &format!("{score:?}"));
    Ok((line.map_err(|what| format!("{}: {what}", document.place()))?, score))
}
