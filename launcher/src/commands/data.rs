//! `swallow-engine data`: token files made, looked at and checked.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use data::check::{Limits, check};
use data::feed::{Feed, Split};
use data::idx::IndexedFile;
use data::meta::Meta;
use data::tokenize::{Job, tokenize};
use data::tokenizer::Tokenizer;
use engine::batch::Samples;
use engine::config::Config;
use engine::error::{Error, Result};

use super::tokenizer::or_broken_pipe;
use crate::progress;

#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Text in, Megatron's .bin and .idx out, on all cores
    #[command(
        after_help = "A .txt file is one document, a .jsonl file one a line; both may be .gz or .zst. Memory stays \
        bounded whatever the input: a JSON line may have 64 MiB; a long .txt is read in parts where the tokenizer's ids \
        do not depend on it (SentencePiece BPE: after any newline; byte-level BPE: before \
        white space), with other tokenizers it may have 64 MiB. Documents without text are left out. Tokens are u16 below a \
        vocabulary of 65500, else i32. PREFIX.meta.json notes the tokenizer.\n\nExamples:\n  \
        swallow-engine data tokenize --input ja.jsonl.gz --tokenizer tokenizer.model --output data/ja --bos --eos\n  \
        swallow-engine data tokenize --input a.txt b.txt --tokenizer tokenizer.json --output data/allocator --eos"
    )]
    Tokenize(Tokenize),
    /// What is in a token file, decoded where the tokenizer is known
    #[command(after_help = "Example:\n  swallow-engine data inspect data/ja --documents 2 --tokenizer tokenizer.model")]
    Inspect(Inspect),
    /// Truncation, wrong pointers, ids outside the vocabulary: a line for each; exit 2 if there is any
    #[command(after_help = "Example:\n  swallow-engine data check data/ja --vocab-size 43176")]
    Check(Check),
    /// Tokens, epochs and share of every source, before a run
    #[command(after_help = "Examples:\n  swallow-engine data preview --config configs/swallow-7b.toml\n  \
        swallow-engine data preview --config run.toml --samples 3    # where the first samples lie and their ids, as JSON")]
    Preview(Preview),
}

#[derive(ClapArgs, Debug)]
struct Tokenize {
    /// Text files (.txt, .jsonl; also .gz, .zst), read in this order
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// A SentencePiece .model or a Hugging Face tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// Writes PREFIX.bin and PREFIX.idx
    #[arg(long, value_name = "PREFIX")]
    output: PathBuf,
    /// The key of the text in JSON lines
    #[arg(long, default_value = "text")]
    key: String,
    /// Put the tokenizer's BOS before every document
    #[arg(long)]
    bos: bool,
    /// Put the tokenizer's EOS after every document
    #[arg(long)]
    eos: bool,
    /// Threads that encode; the output does not depend on it [default: the cores of this process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
}

#[derive(ClapArgs, Debug)]
struct Inspect {
    prefix: PathBuf,
    /// Decode with this tokenizer [default: the one that made the file, where PREFIX.meta.json knows it]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Documents to show
    #[arg(long, default_value_t = 3, value_name = "N")]
    documents: usize,
    /// The first document to show
    #[arg(long, default_value_t = 0, value_name = "I")]
    from: usize,
    /// Tokens to show of each
    #[arg(long, default_value_t = 200, value_name = "N")]
    tokens: usize,
}

#[derive(ClapArgs, Debug)]
struct Check {
    prefix: PathBuf,
    /// Ids must be below this [default: what PREFIX.meta.json says, if there is one]
    #[arg(long, value_name = "N")]
    vocab_size: Option<u64>,
}

#[derive(ClapArgs, Debug)]
struct Preview {
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A key of the configuration over the file's
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print this many samples as JSON lines instead of the table: number, source, pieces [document, offset, tokens], ids
    #[arg(long, value_name = "N")]
    samples: Option<u64>,
    /// Of which split [default: the table has both, the samples are of train]
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
        Command::Tokenize(args) => run_tokenize(args),
        Command::Inspect(args) => inspect(args),
        Command::Check(args) => run_check(args),
        Command::Preview(args) => preview(args),
    }
}

fn run_tokenize(args: Tokenize) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let wanted = |flag: &str, asked: bool, id: Option<u32>| match (asked, id) {
        (true, None) => Err(Error::user(format!("{flag}: {} has no such token", args.tokenizer.display()))),
        (asked, id) => Ok(id.filter(|_| asked)),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let job = Job {
        inputs: &args.input,
        output: args.output,
        tokenizer: &tokenizer,
        key: args.key,
        bos: wanted("--bos", args.bos, tokenizer.bos())?,
        eos: wanted("--eos", args.eos, tokenizer.eos())?,
        workers: args.workers.map_or(cores, usize::from),
    };
    let mut bar = None;
    let done = tokenize(&job, |p| bar.get_or_insert_with(|| progress::Bytes::new("tokenize", p.total)).at(p.read))?;
    if let Some(bar) = bar {
        bar.finish();
    }
    let empty = if done.empty > 0 { format!(" ({} without text left out)", done.empty) } else { String::new() };
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{}: {} documents{empty}, {} tokens, {:.2} bytes of text a token",
        job.output.display(),
        done.documents,
        done.tokens,
        done.text as f64 / done.tokens as f64
    ))
}

fn inspect(args: Inspect) -> Result<()> {
    let file = IndexedFile::open(&args.prefix)?;
    if args.from > 0 && args.from >= file.sequences() {
        let (from, prefix, n) = (args.from, file.prefix().display(), file.sequences());
        return Err(Error::user(format!("--from {from}: {prefix} has {n} documents, counted from 0")));
    }
    let meta = Meta::read(file.prefix());
    let path = args.tokenizer.or_else(|| meta.as_ref()?.unchanged_tokenizer().map(PathBuf::from));
    let tokenizer = path.as_deref().map(Tokenizer::open).transpose()?;
    let mut out = std::io::stdout().lock();
    let tokens = file.tokens()?;
    let mut text = format!(
        "{}: {} documents, {tokens} tokens of {}, {:.1} a document\n",
        file.prefix().display(),
        file.sequences(),
        file.kind().name(),
        tokens as f64 / file.sequences().max(1) as f64
    );
    if let Some(meta) = &meta {
        text += &format!("tokenizer: {} (vocabulary {})\n", meta.tokenizer, meta.vocab_size);
    }
    for i in args.from..file.sequences().min(args.from.saturating_add(args.documents)) {
        let mut ids = Vec::new();
        file.read(i, 0, (file.length(i) as usize).min(args.tokens), &mut ids)?;
        text += &format!("\ndocument {i}: {} tokens: {:?}\n", file.length(i), &ids[..ids.len().min(16)]);
        if let Some(tokenizer) = &tokenizer {
            text += &format!("{}\n", tokenizer.decode(&ids)?);
        }
        or_broken_pipe(out.write_all(text.as_bytes()))?;
        text.clear();
    }
    or_broken_pipe(out.write_all(text.as_bytes()))
}

fn run_check(args: Check) -> Result<()> {
    let vocab_size = args.vocab_size.or_else(|| Some(Meta::read(&args.prefix)?.vocab_size as u64));
    let report = check(&args.prefix, Limits { vocab_size })?;
    let mut out = std::io::stdout().lock();
    for finding in &report.findings {
        or_broken_pipe(writeln!(out, "{}: {finding}", args.prefix.display()))?;
    }
    if !report.findings.is_empty() {
        let n = report.findings.len();
        return Err(Error::user(format!("{}: {n} findings: make the file again", args.prefix.display())));
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
    let split = args.split.map(|split| split.of_run(&feed)).transpose()?;
    match args.samples {
        Some(n) => print_samples(&config, &feed, split.unwrap_or(Split::Train), n),
        None => print_sources(&config, &feed, split),
    }
}

/// `only`: of this split.
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
