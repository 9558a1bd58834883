//! `swallow-engine tokenizer`: vocabularies trained, texts to ids and back.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use data::json::string_under;
use data::tokenizer::{Tokenizer, train};
use engine::error::{Error, Result};

#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// A byte-level BPE vocabulary from text, as a Hugging Face tokenizer.json
    #[command(
        after_help = "The ids 0, 1, 2 are <unk>, <s>, </s>. A tokenizer_config.json for transformers is written beside \
        it where there is none.\n\nExample:\n  \
        swallow-engine tokenizer train --input ja.txt en.jsonl --vocab-size 8000 --output tokenizer.json"
    )]
    Train(Train),
    /// Text to ids: one JSON array a line
    #[command(
        after_help = "Examples:\n  swallow-engine tokenizer encode --tokenizer tokenizer.model --text 'Once upon a time'\n  \
        swallow-engine tokenizer encode --tokenizer tokenizer.json --jsonl < corpus.jsonl"
    )]
    Encode(Encode),
    /// Ids to text
    #[command(
        after_help = "Examples:\n  swallow-engine tokenizer decode --tokenizer tokenizer.model 9038 2501 263 931\n  \
        echo '[9038, 2501]' | swallow-engine tokenizer decode --tokenizer tokenizer.model --jsonl"
    )]
    Decode(Decode),
}

#[derive(ClapArgs, Debug)]
struct Train {
    /// Text files (.txt, .jsonl; also .gz, .zst)
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    input: Vec<PathBuf>,
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// The key of the text in JSON lines
    #[arg(long, default_value = "text")]
    key: String,
}

#[derive(ClapArgs, Debug)]
struct Encode {
    /// A SentencePiece .model or a Hugging Face tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The text [default: every line of standard input]
    #[arg(long)]
    text: Option<String>,
    /// Standard input holds JSON lines
    #[arg(long, conflicts_with = "text")]
    jsonl: bool,
    /// The key of the text in JSON lines
    #[arg(long, default_value = "text")]
    key: String,
}

#[derive(ClapArgs, Debug)]
struct Decode {
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The ids [default: a JSON array in every line of standard input]
    ids: Vec<u32>,
    /// Print {"text": ...} a line, so that texts of several lines stay apart
    #[arg(long)]
    jsonl: bool,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Train(args) => {
            let size = train::train(&args.input, &args.key, args.vocab_size, &args.output)?;
            let name = args.output.display();
            if size < args.vocab_size {
                let asked = args.vocab_size;
                eprintln!(
                    "note: --vocab-size {asked}: the text gives {size} pieces; set model.vocab_size to fit, or add text"
                );
            }
            or_broken_pipe(writeln!(std::io::stdout(), "{name}: a vocabulary of {size} pieces"))
        }
        Command::Encode(args) => encode(args),
        Command::Decode(args) => decode(args),
    }
}

fn encode(args: Encode) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = |text: &str| {
        let ids = tokenizer.encode(text)?;
        or_broken_pipe(writeln!(out, "{}", serde_json::json!(ids)))
    };
    if let Some(text) = &args.text {
        print(text)?;
    } else {
        for_each_line(|number, line| match args.jsonl {
            true => {
                let text = string_under(&args.key, line);
                print(&text.map_err(|e| Error::user(format!("standard input: line {number}: {e}")))?)
            }
            false => print(line),
        })?;
    }
    or_broken_pipe(out.flush())
}

fn decode(args: Decode) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = |ids: &[u32]| {
        let text = tokenizer.decode(ids)?;
        let line = if args.jsonl { serde_json::json!({ "text": text }).to_string() } else { text };
        or_broken_pipe(writeln!(out, "{line}"))
    };
    if args.ids.is_empty() {
        for_each_line(|number, line| {
            let ids: Vec<u32> = serde_json::from_str(line).map_err(|e| {
                Error::user(format!("standard input: line {number}: not a JSON array of ids, such as [1, 2]: {e}"))
            })?;
            print(&ids)
        })?;
    } else {
        print(&args.ids)?;
    }
    or_broken_pipe(out.flush())
}

/// Every line of standard input, without its end, with its number from 1.
fn for_each_line(mut each: impl FnMut(u64, &str) -> Result<()>) -> Result<()> {
    let mut input = std::io::stdin().lock();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = input.read_until(b'\n', &mut line);
        if read.map_err(|e| Error::run(format!("standard input: {e}")))? == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let text = std::str::from_utf8(text).map_err(|e| {
            let at = e.valid_up_to() + 1;
            Error::user(format!("standard input: line {number}, byte {at}: not UTF-8; pipe it through iconv first"))
        })?;
        each(number, text)?;
    }
    Ok(())
}

/// Whoever closed the pipe has seen enough: that ends the program without a complaint.
pub fn or_broken_pipe(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|e| Error::run(format!("standard output: {e}"))),
    }
}
