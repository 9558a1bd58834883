//! `data dedup`: of documents that are nearly the same, one stays, and lines that were seen before are removed.
//!
//! [`reading`] signs every document by MinHash and puts it into a temporary file ([`spool`]); the keys of the bands of
//! the signatures are sorted on the disk ([`sorter`]). [`comparing`] compares documents that share a band by the exact
//! Jaccard coefficient of their sets of character 5-grams ([`grams`]) and joins those that reach the threshold. A
//! cluster is a connected component of that relation ([`union_find`]), and [`keepers`] decides which document of it
//! stays. [`lines`] marks repeated lines in the documents that stay, and [`writing`] writes those in the order of the
//! input. Which pairs are never compared is the question of [`minhash`].
//!
//! The output depends neither on the number of workers nor on the memory.

mod budget;
mod comparing;
mod grams;
mod keepers;
mod lines;
mod minhash;
mod parallel;
mod reading;
mod scratch;
mod sorter;
mod spool;
#[cfg(test)]
mod tests;
mod union_find;
mod writing;

use std::path::PathBuf;

use data::text::Inputs;
use engine::error::{Error, Result};

pub use budget::least_memory;
pub use minhash::LEAST_THRESHOLD;

use crate::documents::{Bad, Skipped};
use crate::drops::Drops;
use crate::output::Output;
use budget::Budget;
use comparing::{Comparison, components};
use lines::{Marks, Search};
use minhash::Bands;
use scratch::Scratch;

/// Which document of a cluster stays. Among equals it is the first one of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    First,
    /// The one with the most characters.
    Longest,
    /// The one with the largest value under a key of its record. Strings are compared by their bytes and numbers by
    /// their values; inputs with both are refused, and a record with neither is bad.
    Newest {
        key: String,
    },
}

/// The inputs and settings of a deduplication.
pub struct Job<'a> {
    pub inputs: &'a Inputs,
    pub output: PathBuf,
    pub keep: Keep,
    /// The least Jaccard coefficient of near duplicates, from [`LEAST_THRESHOLD`] to 1.
    pub threshold: f64,
    /// Also remove lines of at least so many characters that stand in an earlier document that stays, or earlier in the
    /// same one.
    pub lines: Option<usize>,
    pub bad: Bad,
    /// Threads that read and compare, at least one.
    pub workers: usize,
    /// Bytes of the whole process, at least [`least_memory`].
    pub memory: usize,
    /// The folder for temporary files, which exists.
    pub scratch: PathBuf,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Counted in bytes on the disk.
    Reading,
    /// Counted in keys of bands.
    Comparing,
    /// Counted in documents.
    Lines,
    /// Counted in documents.
    Writing,
}

/// What was done.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The rule `near_duplicate`, and with [`Job::lines`] the rule `repeated_lines`: documents of which only blank
    /// lines were left.
    pub drops: Drops,
    pub skipped: Skipped,
    /// Clusters of more than one document.
    pub clusters: u64,
    /// Lines removed, also those of documents of which nothing was left.
    pub removed_lines: u64,
    /// Bytes written to temporary files.
    pub spilled: u64,
}

/// Deduplicates. `progress` gets what is being done, how much of it is done, and how much there is to do, 0 where that
/// is not known. Nothing stands under the output's name before the end, and temporary files are gone in any case.
pub fn dedup(job: &Job, progress: impl FnMut(Phase, u64, u64)) -> Result<Done> {
    let budget = Budget::new(job.memory, job.workers)?;
    within(job, budget, progress)
}

fn within(job: &Job, budget: Budget, mut progress: impl FnMut(Phase, u64, u64)) -> Result<Done> {
    check(job)?;
    let input_bytes = job.inputs.check()?;
    let mut output = Output::create(&job.output)?;
    let scratch = Scratch::new(&job.scratch);
    let bands = Bands::for_threshold(job.threshold);
    let on_read = |read| progress(Phase::Reading, read, input_bytes);
    let reading::Corpus { spool, keys, skipped } = reading::read(job, bands, &scratch, &budget, on_read)?;

    let budget = budget.with_documents(spool.documents(), spool.index_bytes())?;
    let (key, workers, documents) = (job.inputs.key.as_str(), job.workers, u64::from(spool.documents()));
    let comparison = Comparison { spool: &spool, key, threshold: job.threshold, workers };
    let n_keys = keys.len();
    let components =
        components(&comparison, keys.finish(budget.merge())?, |done| progress(Phase::Comparing, done, n_keys))?;
    let kept = keepers::keepers(job, components, &spool, &scratch, &budget)?;

    let marks = match job.lines {
        None => Marks::none(&scratch)?,
        Some(least) => {
            let search = Search { spool: &spool, key, kept: &kept.by, least, workers };
            Marks::find(&search, &scratch, &budget, |done| progress(Phase::Lines, done, documents))?
        }
    };
    let on_written = |done| progress(Phase::Writing, done, documents);
    let (mut drops, removed_lines) = writing::write(job, &spool, &kept.by, marks, &mut output, on_written)?;
    output.finish()?;
    drops.skipped = skipped.count;
    Ok(Done { drops, skipped, clusters: kept.clusters, removed_lines, spilled: scratch.spilled() })
}

/// Refuses settings that have no meaning.
fn check(job: &Job) -> Result<()> {
    let threshold = job.threshold;
    if !(LEAST_THRESHOLD..=1.0).contains(&threshold) {
        let range = format!("a Jaccard coefficient from {LEAST_THRESHOLD} to 1");
        return Err(Error::user(format!(
            "--threshold {threshold}: near duplicates are found by {range}; give such a one"
        )));
    }
    if job.lines == Some(0) {
        return Err(Error::user("--lines 0: blank lines would be removed; give the characters of a line, at least 1"));
    }
    Ok(())
}
