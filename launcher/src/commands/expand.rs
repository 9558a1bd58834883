//! `tokenizer expand`: appends the pieces of one vocabulary to another, and says what that gains.

use std::io::Write;
use std::path::PathBuf;

use clap::Args as ClapArgs;
use comfy_table::{CellAlignment, Table, presets};
use data::tokenizer::expand::{self, Expand, Expanded, HeldOut};
use engine::error::Result;

use super::texts::TextFlags;
use crate::output::{or_broken_pipe, say};
use crate::progress::{Bytes, Waiting};

/// The examples of `--help`.
pub const EXAMPLES: &str = "BASE and --add are both SentencePiece models of the type BPE (.model), or both byte-level \
    BPE (tokenizer.json). Every old id stays, and a text to which no new piece applies keeps its ids.\n\nExamples:\n  \
    swallow-engine tokenizer expand Llama-2-7b --add ja/tokenizer.model --output llama2-ja\n  \
    swallow-engine tokenizer expand Llama-3.1-8B --add ja.json --output llama3-ja --held-out ja.jsonl en.jsonl\n\n\
    `checkpoint expand-vocab` then gives the model rows for the new pieces.";

#[derive(ClapArgs, Debug)]
pub struct Args {
    /// The tokenizer to expand: a SentencePiece .model, a tokenizer.json, or a folder with one
    #[arg(value_name = "BASE")]
    base: PathBuf,
    /// The tokenizer whose pieces are appended
    #[arg(long, value_name = "NEW")]
    add: PathBuf,
    /// The folder to write, with all files of a tokenizer; it must be new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Leave out new pieces, those of the lowest scores or the last merges, until the size is a multiple of N
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    multiple_of: u32,
    /// Normalize texts by Unicode's NFKC; NEW must have been trained so, or without a normalizer
    #[arg(long)]
    nfkc: bool,
    /// Text files by which characters a token are counted, before and after
    #[arg(long, num_args = 1.., value_name = "FILE")]
    held_out: Vec<PathBuf>,
    #[command(flatten)]
    texts: TextFlags,
}

pub fn run(args: Args) -> Result<()> {
    let Args { base, add, output, multiple_of, nfkc, held_out, texts } = args;
    let inputs = texts.inputs(held_out);
    let total = inputs.check()?;
    let request = Expand { base: &base, add: &add, output: &output, multiple_of: multiple_of as usize, nfkc };
    let waiting = Waiting::new("expand");
    // A text that cannot be used fails before the folder has its name.
    let (expanded, counted) = expand::expand(&request, |folder| {
        drop(waiting);
        if inputs.paths.is_empty() {
            return Ok(Vec::new());
        }
        let bar = Bytes::new("held out", total);
        let counted = expand::count(&base, folder, &inputs, &|done| bar.at(done.min(total)))?;
        bar.finish();
        Ok(counted)
    })?;
    expanded.notes.iter().for_each(|note| say!("note: {note}"));
    let line = summary(&expanded, multiple_of);
    or_broken_pipe(writeln!(std::io::stdout(), "{}: {line}", output.display()))?;
    if counted.is_empty() {
        return Ok(());
    }
    or_broken_pipe(writeln!(std::io::stdout(), "{}", table(&counted)))
}

fn summary(expanded: &Expanded, multiple_of: u32) -> String {
    let Expanded { base, size, known, repeated, left_out, .. } = expanded;
    let repeated = match repeated {
        0 => String::new(),
        n => format!("{n} that are others without \u{2581}, "),
    };
    format!(
        "{size} pieces, {base} old and {} new; left out: {known} that BASE has, {repeated}{left_out} for a multiple of \
         {multiple_of}",
        size - base
    )
}

fn table(counted: &[HeldOut]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let before_and_after = ["tokens before", "after", "characters a token before", "after", "tokens after / before"];
    table.set_header(["file", "characters"].into_iter().chain(before_and_after));
    let row = |name: String, counted: &HeldOut| {
        let ([before, after], [old, new]) = (counted.tokens, counted.characters_a_token());
        let share = after as f64 / before.max(1) as f64;
        let numbers = [counted.characters, before, after].map(|n| n.to_string());
        let [characters, before, after] = numbers;
        [name, characters, before, after, format!("{old:.3}"), format!("{new:.3}"), format!("{share:.3}")]
    };
    for file in counted {
        table.add_row(row(file.file.display().to_string(), file));
    }
    if counted.len() > 1 {
        let sum = |of: fn(&HeldOut) -> usize| counted.iter().map(of).sum();
        let tokens = [sum(|file| file.tokens[0]), sum(|file| file.tokens[1])];
        let all = HeldOut { file: PathBuf::new(), characters: sum(|file| file.characters), tokens };
        table.add_row(row("all".into(), &all));
    }
    for column in 1..7 {
        table.column_mut(column).expect("the table has seven columns").set_cell_alignment(CellAlignment::Right);
    }
    table
}
