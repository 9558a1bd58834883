//! `swallow-engine data`: makes token files, shows them and checks them.

mod preview;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use data::check::{Limits, check};
use data::idx::IndexedFile;
use data::meta::Meta;
use data::tokenize::{Job, tokenize};
use data::tokenizer::{Special, Tokenizer};
use engine::error::{Error, Result, counted};

use super::texts::TextFlags;
use crate::output::or_broken_pipe;
use crate::progress;

#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Tokenize text into Megatron-LM's .bin and .idx, on all cores
    #[command(after_help = TOKENIZE_HELP)]
    Tokenize(Tokenize),
    /// Show what is in a token file, decoded where the tokenizer is known
    #[command(after_help = "Example:\n  swallow-engine data inspect data/ja --documents 2 --tokenizer tokenizer.model")]
    Inspect(Inspect),
    /// Look for truncation, wrong pointers and ids outside the vocabulary; print a line for each and exit with 2
    #[command(after_help = "Example:\n  swallow-engine data check data/ja --vocab-size 43176")]
    Check(Check),
    /// Show tokens, epochs and share of every source, in every stage, before a run
    #[command(after_help = "Examples:\n  swallow-engine data preview --config configs/swallow-7b.toml\n  \
        swallow-engine data preview --config run.toml --samples 3")]
    Preview(preview::Args),
}

const TOKENIZE_HELP: &str = "\
A .txt file is one document, a .jsonl file has one a line; both may be compressed (.gz, .zst). Documents without text \
are left out. Tokens are u16 below a vocabulary of 65500, else i32. PREFIX.meta.json notes the tokenizer.

Memory beside the tokenizer: less than 1 GiB, plus 8 MiB a worker and 4 bytes a document, whatever the input. \
A document is encoded in parts where the ids do not depend on it (SentencePiece BPE with byte fallback: after a \
newline; byte-level BPE: beside white space). With other tokenizers a document is encoded as a whole: it may have \
16 MiB, and memory reaches 3 GiB. A JSON line may have 64 MiB.

Examples:
  swallow-engine data tokenize --input ja.jsonl.gz --tokenizer tokenizer.model --output data/ja --bos --eos
  swallow-engine data tokenize --input a.txt b.txt --tokenizer tokenizer.json --output data/allocator --eos
  xz -dc en.jsonl.xz | swallow-engine data tokenize --input - --tokenizer tokenizer.json --output data/en --eos";

#[derive(ClapArgs, Debug)]
struct Tokenize {
    /// Text files (.txt, .jsonl; also .gz, .zst), read in this order, or - for standard input
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    /// A SentencePiece .model or a Hugging Face tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The token file to write: PREFIX.bin and PREFIX.idx
    #[arg(long, value_name = "PREFIX")]
    output: PathBuf,
    #[command(flatten)]
    texts: TextFlags,
    /// Put the tokenizer's BOS before every document
    #[arg(long)]
    bos: bool,
    /// Put the tokenizer's EOS after every document
    #[arg(long)]
    eos: bool,
    /// Leave out records that are no text instead of stopping at the first: count them and name the first ten
    #[arg(long)]
    skip_bad: bool,
    /// Threads that encode; the output does not depend on it [default: the cores of this process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
}

#[derive(ClapArgs, Debug)]
struct Inspect {
    /// The token file, without .bin or .idx
    prefix: PathBuf,
    /// Decode with this tokenizer [default: the one that made the file, where PREFIX.meta.json names it]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// How many documents to show
    #[arg(long, default_value_t = 3, value_name = "N")]
    documents: usize,
    /// The first document to show
    #[arg(long, default_value_t = 0, value_name = "I")]
    from: usize,
    /// How many tokens of each to show
    #[arg(long, default_value_t = 200, value_name = "N")]
    tokens: usize,
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
        Command::Tokenize(args) => run_tokenize(args),
        Command::Inspect(args) => inspect(args),
        Command::Check(args) => run_check(args),
        Command::Preview(args) => preview::preview(args),
    }
}

fn run_tokenize(args: Tokenize) -> Result<()> {
    let inputs = args.texts.inputs(args.input);
    let total = inputs.check()?;
    let progress = progress::Bytes::new("tokenize", total);
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let wanted = |flag: &str, asked: bool, id: Special| match (asked, id) {
        (true, Err(why)) => {
            let name = tokenizer.path().display();
            Err(Error::user(format!("{flag}: {name} has no such token: {why}; leave {flag} out")))
        }
        (asked, id) => Ok(id.ok().filter(|_| asked)),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let job = Job {
        inputs: &inputs,
        output: args.output,
        tokenizer: &tokenizer,
        bos: wanted("--bos", args.bos, tokenizer.bos())?,
        eos: wanted("--eos", args.eos, tokenizer.eos())?,
        skip_bad: args.skip_bad,
        workers: args.workers.map_or(cores, usize::from),
    };
    let done = tokenize(&job, |done| progress.at(done.read))?;
    // The length of a pipe is unknown.
    if total > 0 {
        progress.finish();
    }
    if done.bad > 0 {
        eprintln!("warning: {} left out, which are no text:", counted(done.bad as usize, "record"));
        done.first_bad.iter().for_each(|what| eprintln!("  {what}"));
        let more = done.bad - done.first_bad.len() as u64;
        if more > 0 {
            eprintln!("  and {more} more");
        }
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
        return Err(Error::user(format!("--from {from}: {prefix} has {n} documents; the first is 0")));
    }
    let meta = Meta::read(file.prefix()).unwrap_or_default();
    let path = args.tokenizer.or_else(|| meta.unchanged_tokenizer().map(PathBuf::from));
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
    if let Some(tokenizer) = &meta.tokenizer {
        let size = meta.vocab_size.map_or(String::new(), |size| format!(" (vocabulary {size})"));
        text += &format!("tokenizer: {tokenizer}{size}\n");
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
