//! `data filter`: documents that break rules are dropped.

use std::path::PathBuf;

use corpus::drops::Drops;
use corpus::filter::{Job, Rules, filter};
use engine::error::Result;

use super::documents::{Documents, bytes, finish, warn_of_bad};
use crate::output::say;
use crate::progress;

pub const HELP: &str = "\
A rules file (TOML) has thresholds of statistics of a document, such as its characters or the share of lines that repeat
another line. A document is dropped by the first rule that it breaks. configs/corpus has the rules of the Swallow \
Corpus; docs/corpus.md describes the statistics.

Examples:
  swallow-engine data filter --input crawl.jsonl.zst --rules configs/corpus/swallow-v1.toml --output kept.jsonl.zst
  swallow-engine data filter --input a.jsonl b.jsonl --rules my.toml --output kept.jsonl --report dropped.json";

#[derive(clap::Args, Debug)]
pub struct Filter {
    #[command(flatten)]
    documents: Documents,
    /// The rules
    #[arg(long, value_name = "FILE.toml")]
    rules: PathBuf,
    /// Write what was dropped, by rule, with examples, into this file (.json), and a page beside it (.html)
    #[arg(long, value_name = "FILE.json")]
    report: Option<PathBuf>,
    /// Memory for documents that are being read
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = bytes)]
    memory: usize,
}

pub fn run(args: Filter) -> Result<()> {
    args.report.as_deref().map_or(Ok(()), Drops::check)?;
    let rules = Rules::open(&args.rules)?;
    let (inputs, total) = args.documents.inputs()?;
    let work = &args.documents.work;
    let job = Job {
        inputs: &inputs,
        rules: &rules,
        output: args.documents.output.clone(),
        bad: work.bad(),
        workers: work.workers(),
        memory: args.memory,
    };
    let progress = progress::Bytes::new("filter", total);
    let done = filter(&job, |read| progress.at(read))?;
    if total > 0 {
        progress.finish();
    }
    warn_of_bad(&done.skipped);
    if done.changed > 0 {
        say!("note: the text of {} of the kept documents was changed", done.changed);
    }
    finish(&done.drops, &job.output, args.report.as_deref())
}
