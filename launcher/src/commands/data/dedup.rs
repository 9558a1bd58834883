//! `data dedup`: of documents that are nearly the same, one stays.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use corpus::dedup::{Job, Keep, Phase, dedup};
use corpus::drops::Drops;
use engine::error::{Error, Result};

use super::documents::{Documents, bytes, finish, warn_of_bad};
use crate::output::say;
use crate::progress;

pub const HELP: &str = "\
Two documents are near-duplicates if the Jaccard index of their sets of character 5-grams reaches the threshold. Pairs
are found by MinHash signatures and verified; of each group of documents that such pairs connect, one stays.

The process stays within --memory: signatures and documents are spilled to a scratch folder, which needs about as much
space as the uncompressed input. A document costs four bytes of it; a command that needs more says so and ends.

Examples:
  swallow-engine data dedup --input crawl.jsonl.zst --output unique.jsonl.zst --report duplicates.json
  swallow-engine data dedup --input a.jsonl b.jsonl --output unique.jsonl --keep newest --date-key date
  swallow-engine data dedup --input crawl.jsonl --output unique.jsonl --lines 20 --memory 4GB --scratch /local";

#[derive(clap::Args, Debug)]
pub struct Dedup {
    #[command(flatten)]
    documents: Documents,
    /// The document of a group that stays; of equals the first
    #[arg(long, value_enum, default_value_t = Which::First)]
    keep: Which,
    /// The key by which documents are newer: texts such as 2024-05-01, or numbers
    #[arg(long, value_name = "KEY")]
    date_key: Option<String>,
    /// The Jaccard index from which on two documents are near-duplicates
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, value_parser = share)]
    threshold: f64,
    /// Also remove lines of at least N characters that stand in an earlier place
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    lines: Option<u32>,
    /// Write what was dropped, with examples, into this file (.json), and a page beside it (.html)
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Memory to use; what does not fit is spilled
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = bytes)]
    memory: usize,
    /// Folder for spilled files [default: that of --output]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Longest,
    Newest,
}

/// A share above 0, at most 1.
pub fn share(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| *x > 0.0 && *x <= 1.0);
    number.ok_or_else(|| "write a number above 0, at most 1".to_string())
}

impl Dedup {
    fn keep(&self) -> Result<Keep> {
        match (self.keep, &self.date_key) {
            (Which::First, None) => Ok(Keep::First),
            (Which::Longest, None) => Ok(Keep::Longest),
            (Which::Newest, Some(key)) => Ok(Keep::Newest { key: key.clone() }),
            (Which::Newest, None) => Err(Error::user("--keep newest: name the key of the date with --date-key")),
            (_, Some(_)) => Err(Error::user("--date-key: belongs to --keep newest")),
        }
    }
}

pub fn run(args: Dedup) -> Result<()> {
    args.report.as_deref().map_or(Ok(()), Drops::check)?;
    let keep = args.keep()?;
    let (inputs, total) = args.documents.inputs()?;
    let work = &args.documents.work;
    let output = args.documents.output.clone();
    let beside = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let job = Job {
        inputs: &inputs,
        scratch: args.scratch.clone().unwrap_or_else(|| beside.to_path_buf()),
        output: output.clone(),
        keep,
        threshold: args.threshold,
        lines: args.lines.map(|n| n as usize),
        bad: work.bad(),
        workers: work.workers(),
        memory: args.memory,
    };
    let mut shown = Shown { total, current: None };
    let done = dedup(&job, |phase, done, of| shown.at(phase, done, of))?;
    shown.finish();
    warn_of_bad(&done.skipped);
    say!("{} groups of near-duplicates; {:.1} MB were spilled", done.clusters, done.spilled as f64 / 1e6);
    if job.lines.is_some() {
        say!("{} repeated lines were removed", done.removed_lines);
    }
    finish(&done.drops, &output, args.report.as_deref())
}

/// The progress of one phase after the other.
struct Shown {
    /// Bytes of the inputs.
    total: u64,
    current: Option<(Phase, Bar)>,
}

enum Bar {
    Bytes(progress::Bytes),
    Count(progress::Count),
}

impl Shown {
    fn at(&mut self, phase: Phase, done: u64, of: u64) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != phase) {
            self.finish();
            let bar = match phase {
                Phase::Reading => Bar::Bytes(progress::Bytes::new("dedup: reading", self.total)),
                Phase::Comparing => Bar::Count(progress::Count::new("dedup: comparing", of)),
                Phase::Lines => Bar::Count(progress::Count::new("dedup: lines", of)),
                Phase::Writing => Bar::Count(progress::Count::new("dedup: writing", of)),
            };
            self.current = Some((phase, bar));
        }
        match &self.current {
            Some((_, Bar::Bytes(bytes))) => bytes.at(done),
            Some((_, Bar::Count(count))) => count.at(done),
            None => {}
        }
    }

    fn finish(&mut self) {
        match self.current.take() {
            Some((_, Bar::Bytes(bytes))) => bytes.finish(),
            Some((_, Bar::Count(count))) => count.finish(),
            None => {}
        }
    }
}
