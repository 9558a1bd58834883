//! `swallow-engine tokenizer`: trains and expands vocabularies, encodes texts and decodes ids.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};
use data::json::string_under;
use data::tokenizer::{ControlTokens, Tokenizer};
use engine::error::{Error, Result};

use super::expand;
use super::texts::SpecialTokens;
use super::tokenizer_train::{self, Train};
use crate::output::or_broken_pipe;

#[derive(ClapArgs, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train a vocabulary on text: byte-level BPE, or BPE in SentencePiece's form
    #[command(after_help = tokenizer_train::EXAMPLES)]
    Train(Train),
    /// Append the pieces of one vocabulary to another, without moving an old id
    #[command(after_help = expand::EXAMPLES)]
    Expand(expand::Args),
    /// Encode texts: prints the ids of each as a JSON array
    #[command(after_help = "Examples:\n  \
        swallow-engine tokenizer encode --tokenizer tokenizer.model --text 'Once upon a time'\n  \
        swallow-engine tokenizer encode --tokenizer tokenizer.json --jsonl < corpus.jsonl")]
    Encode(Encode),
    /// Decode ids to text
    #[command(
        after_help = "Examples:\n  swallow-engine tokenizer decode --tokenizer tokenizer.model 9038 2501 263 931\n  \
        echo '[9038, 2501]' | swallow-engine tokenizer decode --tokenizer tokenizer.model --jsonl"
    )]
    Decode(Decode),
}

#[derive(ClapArgs, Debug)]
struct Encode {
    /// A SentencePiece .model or a Hugging Face tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The text to encode [default: every line of standard input]
    #[arg(long)]
    text: Option<String>,
    /// Read JSON lines from standard input
    #[arg(long, conflicts_with = "text")]
    jsonl: bool,
    /// The key of the text in JSON lines
    #[arg(long, default_value = "text")]
    key: String,
    /// How to encode a special (control) token that a text spells out [default: as in Python: parse for a
    /// tokenizer.json, text for a SentencePiece .model]
    #[arg(long, value_enum, value_name = "HOW")]
    special_tokens: Option<SpecialTokens>,
}

#[derive(ClapArgs, Debug)]
struct Decode {
    /// A SentencePiece .model or a Hugging Face tokenizer.json
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The ids to decode [default: a JSON array in every line of standard input]
    ids: Vec<u32>,
    /// Print each text as a line {"text": ...}, so that texts of several lines stay apart
    #[arg(long)]
    jsonl: bool,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Train(args) => tokenizer_train::run(args),
        Command::Expand(args) => expand::run(args),
        Command::Encode(args) => encode(args),
        Command::Decode(args) => decode(args),
    }
}

fn encode(args: Encode) -> Result<()> {
    let controls = args.special_tokens.map_or(ControlTokens::AsInPython, SpecialTokens::control_tokens);
    let tokenizer = Tokenizer::open_with(&args.tokenizer, controls)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut print = |text: &str| {
        let ids = tokenizer.encode(text)?;
        or_broken_pipe(writeln!(out, "{}", serde_json::json!(ids)))
    };
    if let Some(text) = &args.text {
        print(text)?;
    } else {
        for_each_line(|number, line| match args.jsonl {
            true if line.trim().is_empty() => Ok(()),
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
                let expected = "a JSON array of ids is expected, such as [1, 2]";
                Error::user(format!("standard input: line {number}: {expected}: {e}"))
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
