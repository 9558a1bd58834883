//! `swallow-engine data`: makes token files, shows them and checks them.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use data::check::{Limits, check};
use data::feed::{Feed, Split};
use data::idx::IndexedFile;
use data::meta::Meta;
use engine::batch::Samples;
use engine::config::Config;
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
    /// Tokenize text into Megatron-LM's .bin and .idx, on all cores
    #[command(after_help = tokenize::HELP)]
    Tokenize(tokenize::Tokenize),
    /// Show what is in a token file, decoded where the tokenizer is known
    #[command(after_help = "Example:\n  swallow-engine data inspect data/ja --documents 2 --tokenizer tokenizer.model")]
    Inspect(inspect::Inspect),
    /// Look for truncation, wrong pointers and ids outside the vocabulary; print a line for each and exit with 2
    #[command(after_help = "Example:\n  swallow-engine data check data/ja --vocab-size 43176")]
    Check(Check),
    /// Show tokens, epochs and share of every source, before a run
    #[command(after_help = "Examples:\n  swallow-engine data preview --config configs/swallow-7b.toml\n  \
        swallow-engine data preview --config run.toml --samples 3")]
    Preview(Preview),
}

#[derive(ClapArgs, Debug)]
struct Check {
    /// The token file, without .bin or .idx
    prefix: PathBuf,
    /// Ids must be below this [default: the vocabulary's size in PREFIX.meta.json, if there is one]
    #[arg(long, value_name = "N")]
    vocab_size: Option<u64>,
}

#[derive(ClapArgs, Debug)]
struct Preview {
    /// The run's configuration (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Replace one key, such as train.steps=100
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print this many samples as JSON lines instead of the table: number, source, pieces [document, offset, tokens],
    /// ids
    #[arg(long, value_name = "N")]
    samples: Option<u64>,
    /// Show only this split [default: the table has both, the samples are of train]
    #[arg(long, value_enum)]
    split: Option<WhichSplit>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum WhichSplit {
    Train,
    Valid,
}

impl WhichSplit {
    fn of_run(self, feed: &Feed) -> Result<Split> {
        let split = match self {
            WhichSplit::Train => Split::Train,
            WhichSplit::Valid => Split::Valid,
        };
        match feed.sources().iter().any(|source| source.split == split) {
            true => Ok(split),
            false => Err(Error::user("--split valid: the run never validates (train.eval_interval = 0)")),
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Check(args) => run_check(args),
        Command::Preview(args) => preview(args),
    }
}

fn run_check(args: Check) -> Result<()> {
    let noted = || Some(Meta::read(IndexedFile::open(&args.prefix).ok()?.prefix())?.vocab_size? as u64);
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

fn preview(args: Preview) -> Result<()> {
    let config = Config::load(&args.config, &args.set)?;
    let feed = Feed::open(&config)?;
    feed.check_tokenizers(&config.train.load)?;
    let split = args.split.map(|split| split.of_run(&feed)).transpose()?;
    match args.samples {
        Some(n) => print_samples(&config, &feed, split.unwrap_or(Split::Train), n),
        None => print_sources(&config, &feed, split),
    }
}

/// Only the sources of the split `only`, where it is given.
fn print_sources(config: &Config, feed: &Feed, only: Option<Split>) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["split", "source", "documents", "tokens", "samples taken", "share", "epochs"]);
    for source in feed.sources().into_iter().filter(|source| only.is_none_or(|split| source.split == split)) {
        table.add_row([
            format!("{:?}", source.split).to_lowercase(),
            source.prefix.display().to_string(),
            source.plan.documents.to_string(),
            source.plan.tokens.to_string(),
            source.samples.to_string(),
            format!("{:.2} %", 100.0 * source.share),
            format!("{:.3}", source.epochs),
        ]);
    }
    table.column_iter_mut().skip(2).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let train = &config.train;
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{table}\n{} steps of {} samples of {} tokens: {} tokens",
        train.steps,
        train.global_batch_size,
        train.seq_length,
        u128::from(train.steps) * (train.global_batch_size * train.seq_length) as u128
    ))
}

fn print_samples(config: &Config, feed: &Feed, split: Split, n: u64) -> Result<()> {
    let key = match split {
        Split::Train => "data.train",
        Split::Valid => "data.valid",
    };
    let of_split: Vec<_> = feed.sources().into_iter().filter(|s| s.split == split).collect();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for sample in 0..n.min(feed.samples(split)) {
        let (source, pieces) = feed.places(split, sample..sample + 1)?.remove(0);
        let batch = feed.micro_batch(split, sample..sample + 1)?;
        let mut ids = batch.ids;
        ids.extend(batch.targets.last());
        assert_eq!(ids.len(), config.train.seq_length + 1);
        let pieces: Vec<_> = pieces.iter().map(|p| (p.document, p.offset, p.count)).collect();
        let line = serde_json::json!({
            "sample": sample, "source": format!("{key}[{source}]"),
            "prefix": of_split[source].prefix.display().to_string(), "pieces": pieces, "ids": ids,
        });
        or_broken_pipe(writeln!(out, "{line}"))?;
    }
    or_broken_pipe(out.flush())
}
