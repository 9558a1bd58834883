//! The best documents by a score that each record has. The inputs are read twice: for the lowest score that stays, and
//! for the documents. Between the two, the scores are in memory: four bytes a document, eight while they grow.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use data::text::Inputs;
use engine::error::{Error, Result};

use super::score::MEMORY_PER_BYTE;
use crate::documents::{Bad, Batch, Document, Skipped, batches};
use crate::drops::{Drops, Example, Rule};
use crate::ordered;
use crate::output::Output;
use crate::record;

/// The inputs and settings of a choice by score.
pub struct KeepJob<'a> {
    pub inputs: &'a Inputs,
    /// Its name ends in .jsonl, .jsonl.gz or .jsonl.zst.
    pub output: PathBuf,
    /// The share of the documents that stay, above 0 and at most 1.
    pub top: f64,
    /// The key of the score, a number, which is compared as f32.
    pub score_key: &'a str,
    pub bad: Bad,
    /// Threads that read records, at least one.
    pub workers: usize,
    /// Bytes of memory for documents between reading and writing; a document that is larger passes alone.
    pub memory: usize,
}

/// What a choice has done.
#[derive(Debug)]
pub struct Kept {
    /// One rule, `score`.
    pub drops: Drops,
    pub skipped: Skipped,
    /// The lowest score that stays; `None` without documents.
    pub threshold: Option<f32>,
}

/// A record as the second reading takes it.
struct Candidate {
    score: f32,
    characters: u64,
    /// Those that are above the threshold or at it.
    json: Option<String>,
    /// Those that are below the threshold or at it.
    example: Option<Example>,
}

/// Where documents stay.
struct Choice {
    documents: u64,
    threshold: Option<f32>,
    /// Documents at the threshold that stay, which are the first ones.
    at_threshold: u64,
}

/// Writes the `ceil(top * n)` documents with the highest scores, in the order of the inputs; among equal scores the
/// first stay. Calls `progress` with the bytes read so far, which are those of the inputs twice in the end. Nothing
/// stands under the output's name before the end.
pub fn keep(job: &KeepJob, mut progress: impl FnMut(u64)) -> Result<Kept> {
    if !(job.top > 0.0 && job.top <= 1.0) {
        return Err(Error::user(format!("the share {} of documents to keep must be above 0 and at most 1", job.top)));
    }
    if let Some(pipe) = job.inputs.first_pipe() {
        let what =
            "a pipe can be read only once, and the scores are read before the documents; write it to a file first";
        return Err(Error::user(format!("{}: {what}", pipe.display())));
    }
    job.inputs.check()?;
    let mut output = Output::create(&job.output)?;
    let read = Arc::new(AtomicU64::new(0));
    let mut scores = Vec::new();
    for_each(
        job,
        &read,
        |document| score(job, document),
        &mut progress,
        |score| {
            match score {
                Ok(score) => scores.push(score),
                Err(message) => job.bad.record(message, &mut Skipped::default())?,
            }
            Ok(())
        },
    )?;
    let choice = choose(scores, job.top);
    let rule = Rule::new("score", choice.threshold.map(|threshold| format!("below {threshold:?}")));
    let (drops, threshold) = (Drops::new("data classify keep", vec![rule]), choice.threshold);
    let mut kept = Kept { drops, skipped: Skipped::default(), threshold };
    let mut left = choice.at_threshold;
    let candidate = |document: &Document| candidate(job, document, threshold);
    for_each(job, &read, candidate, &mut progress, |candidate| kept.take(candidate, job.bad, &mut left, &mut output))?;
    if kept.drops.documents != choice.documents {
        let (first, second) = (choice.documents, kept.drops.documents);
        let what = format!("the inputs had {first} documents when read first and {second} when read again");
        return Err(Error::user(format!("{what}; leave them as they are until the end")));
    }
    output.finish()?;
    kept.drops.skipped = kept.skipped.count;
    Ok(kept)
}

/// Reads the inputs once: applies `f` to documents in parallel, and `each` to the results in their order.
fn for_each<T: Send>(
    job: &KeepJob,
    read: &Arc<AtomicU64>,
    f: impl Fn(&Document) -> std::result::Result<T, String> + Sync,
    progress: &mut impl FnMut(u64),
    mut each: impl FnMut(std::result::Result<T, String>) -> Result<()>,
) -> Result<()> {
    let work = |batch: Batch| {
        let documents = batch.documents(&job.inputs.key);
        drop(batch);
        Ok(documents.into_iter().map(|document| f(&document?)).collect::<Vec<_>>())
    };
    ordered::map(batches(job.inputs, read.clone()), job.workers, job.memory / MEMORY_PER_BYTE, work, |results| {
        results.into_iter().try_for_each(&mut each)?;
        progress(read.load(atomic::Ordering::Relaxed));
        Ok(())
    })
}

/// The score of a record.
fn score(job: &KeepJob, document: &Document) -> std::result::Result<f32, String> {
    let key = job.score_key;
    let Some(record) = &document.record else {
        return Err(format!("{}: a text file has no scores; score it first", document.place()));
    };
    let Some(value) = record::value(record, key) else {
        return Err(format!("{}: no key \"{key}\"; score the documents first, or name their key", document.place()));
    };
    let number = value.parse::<f32>().ok().filter(|score| score.is_finite());
    number.ok_or_else(|| format!("{}: the value of \"{key}\" must be a number that is finite", document.place()))
}

fn candidate(job: &KeepJob, document: &Document, threshold: Option<f32>) -> std::result::Result<Candidate, String> {
    let score = score(job, document)?;
    let to_threshold = threshold.map_or(Ordering::Equal, |threshold| score.total_cmp(&threshold));
    let json = || document.as_json(&job.inputs.key, &document.text);
    let json = if to_threshold.is_ge() { Some(json()?) } else { None };
    let example = to_threshold.is_le().then(|| Example::new(document, Some(format!("{score:?}"))));
    Ok(Candidate { score, characters: document.text.chars().count() as u64, json, example })
}

/// `ceil(top * n)` of `scores`. A product that differs from a whole number by rounding alone is that number.
fn choose(mut scores: Vec<f32>, top: f64) -> Choice {
    let documents = scores.len() as u64;
    let wanted = top * documents as f64;
    let nearest = wanted.round();
    let wanted = if (wanted - nearest).abs() < 1e-9 * wanted { nearest } else { wanted.ceil() } as usize;
    let wanted = wanted.min(scores.len());
    if wanted == 0 {
        return Choice { documents, threshold: None, at_threshold: 0 };
    }
    let (above, &mut threshold, _) = scores.select_nth_unstable_by(wanted - 1, |a, b| b.total_cmp(a));
    let equal = above.iter().filter(|score| score.total_cmp(&threshold).is_eq()).count() as u64;
    Choice { documents, threshold: Some(threshold), at_threshold: equal + 1 }
}

impl Kept {
    fn take(
        &mut self,
        candidate: std::result::Result<Candidate, String>,
        bad: Bad,
        left: &mut u64,
        output: &mut Output,
    ) -> Result<()> {
        let Candidate { score, characters, json, example } = match candidate {
            Ok(candidate) => candidate,
            Err(message) => return bad.record(message, &mut self.skipped),
        };
        let is_at = self.threshold.is_some_and(|threshold| score.total_cmp(&threshold).is_eq());
        match (json, example) {
            (Some(json), _) if !is_at || *left > 0 => {
                *left -= u64::from(is_at);
                self.drops.keep(characters);
                output.line(&json)?;
            }
            (_, Some(example)) => self.drops.drop(0, characters, || example),
            (_, None) => unreachable!("a document above the threshold has its line"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_rounded_up_and_no_further() {
        let kept = |n: u16, top: f64| {
            let scores: Vec<f32> = (0..n).map(f32::from).collect();
            choose(scores, top).threshold.map_or(0, |threshold| n - threshold as u16)
        };
        // 0.07 * 100 is above 7 in f64.
        let found = [kept(100, 0.07), kept(100, 0.071), kept(3, 0.1), kept(10, 1.0), kept(0, 0.5), kept(1, 1e-12)];
        assert_eq!(found, [7, 8, 1, 10, 0, 1]);
    }

    #[test]
    fn equal_scores_are_counted_at_the_threshold() {
        let choice = choose(vec![1.0, 0.5, 0.5, 0.0, 0.5, 0.5], 0.5);
        assert_eq!((choice.threshold, choice.at_threshold), (Some(0.5), 2));
    }
}
