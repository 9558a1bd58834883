//! `swallow-engine data`: prepares documents; makes token files, shows them and checks them.

mod classify;
mod dedup;
mod documents;
mod filter;
mod preview;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use data::check::{Limits, check};
use data::idx::IndexedFile;
use engine::error::{Error, Result, counted};

use super::{inspect, tokenize};
use crate::output::or_broken_pipe;

#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Of documents that are nearly the same, keep one
    #[command(after_help = dedup::HELP)]
    Dedup(dedup::Dedup),
    /// Keep the documents that no rule of quality drops
    #[command(after_help = filter::HELP)]
    Filter(filter::Filter),
    /// Train a classifier of texts, score documents, keep the best
    #[command(after_help = classify::HELP)]
    Classify(classify::Classify),
    /// Tokenize text into Megatron-LM's .bin and .idx, on all cores
    #[command(after_help = tokenize::HELP)]
    Tokenize(tokenize::Tokenize),
    /// Show what is in a token file, or the samples of a step, decoded where the tokenizer is known
    #[command(
        after_help = "Examples:\n  swallow-engine data inspect data/ja --documents 2 --tokenizer tokenizer.model\n  \
        swallow-engine data inspect --step 1234 --config run.toml --tokens 50"
    )]
    Inspect(inspect::Inspect),
    /// Look for truncation, wrong pointers and ids outside the vocabulary; print a line for each and exit with 2
    #[command(after_help = "Example:\n  swallow-engine data check data/ja --vocab-size 43176")]
    Check(Check),
    /// Show tokens, epochs and share of every source, in every stage, before a run
    #[command(after_help = "Examples:\n  swallow-engine data preview --config configs/swallow-7b.toml\n  \
        swallow-engine data preview --config run.toml --samples 3")]
    Preview(preview::Args),
}

#[derive(ClapArgs, Debug)]
struct Check {
    /// The token file, without .bin or .idx
    prefix: PathBuf,
    /// Ids must be below this [default: the vocabulary's size in PREFIX.meta.json, if there is one]
    #[arg(long, value_name = "N")]
    vocab_size: Option<u64>,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Dedup(args) => dedup::run(args),
        Command::Filter(args) => filter::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Check(args) => run_check(args),
        Command::Preview(args) => preview::preview(args),
    }
}

fn run_check(args: Check) -> Result<()> {
    let noted = || Some(IndexedFile::open(&args.prefix).ok()?.meta()?.vocab_size? as u64);
    let vocab_size = args.vocab_size.or_else(noted);
    let report = check(&args.prefix, Limits { vocab_size })?;
    let mut out = std::io::stdout().lock();
    for finding in &report.findings {
        or_broken_pipe(writeln!(out, "{}: {finding}", args.prefix.display()))?;
    }
    if !report.findings.is_empty() {
        let (prefix, findings) = (args.prefix.display(), counted(report.count, "finding"));
        return Err(Error::user(format!("{prefix}: {findings}; tokenize the text again")));
    }
    or_broken_pipe(writeln!(
        out,
        "{}: sound: {} documents, {} tokens of {}, largest id {}",
        args.prefix.display(),
        report.sequences,
        report.tokens,
        report.kind,
        report.largest_id.map_or("none".to_string(), |id| id.to_string())
    ))
}
