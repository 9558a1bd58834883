//! `checkpoint expand-vocab`: gives a Hugging Face model rows for the new pieces of an expanded tokenizer.

use std::io::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;
use data::tokenizer::Extension;
use engine::checkpoint::{ExpandVocab, Init, expand_vocab, source};
use engine::error::{Error, Result};

use crate::output::{or_broken_pipe, say};
use crate::progress::Bytes;

/// The examples of `--help`.
pub const EXAMPLES: &str = "Examples:
  swallow-engine tokenizer expand Llama-2-7b --add ja/tokenizer.model --output llama2-ja
  swallow-engine checkpoint expand-vocab --model Llama-2-7b --tokenizer llama2-ja --output Llama-2-7b-ja

The model may be of any size: tensors are read and written in bands. Rows beyond the old tokenizer's size (padding) are
overwritten by new pieces; rows never become fewer. All other tensors and files are carried over unchanged.";

#[derive(clap::Args)]
pub struct Args {
    /// Directory with config.json, model.safetensors or its shards, and the model's tokenizer
    #[arg(long, value_name = "HF_DIR")]
    model: PathBuf,
    /// Directory of the expanded tokenizer, whose files replace the model's
    #[arg(long, value_name = "DIR")]
    tokenizer: PathBuf,
    /// Directory to write, new or empty
    #[arg(long, value_name = "HF_DIR")]
    output: PathBuf,
    /// Values of the new rows, in the embedding and the output layer alike
    #[arg(long, value_enum, default_value_t = Rows::MeanOfPieces)]
    init: Rows,
    /// Seed of --init random [default: 1234]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Rows {
    /// The mean of the rows of the pieces into which the old tokenizer splits the new piece
    MeanOfPieces,
    /// The mean of all rows of the old tokenizer
    Mean,
    /// Random values, as where a model is trained from scratch
    Random,
}

pub fn run(args: Args) -> Result<()> {
    if !args.model.is_dir() {
        let what = "this is not a directory; give the one of a Hugging Face model";
        return Err(Error::user(format!("--model {}: {what}", args.model.display())));
    }
    if args.seed.is_some() && !matches!(args.init, Rows::Random) {
        return Err(Error::user("--seed: only --init random draws random rows; leave it out, or give --init random"));
    }
    if !args.tokenizer.is_dir() {
        let what = "this is not a directory; give the one that `tokenizer expand` wrote";
        return Err(Error::user(format!("--tokenizer {}: {what}", args.tokenizer.display())));
    }
    let Extension { old_size, new_size, splits } = Extension::open(&args.model, &args.tokenizer)?;
    let pieces = splits.iter().map(Vec::len).sum::<usize>() as f64 / splits.len() as f64;
    let (init, how) = match args.init {
        Rows::MeanOfPieces => (Init::Pieces(splits), format!("each the mean of {pieces:.2} old ones on average")),
        Rows::Mean => (Init::Mean, "all the mean of the old ones".into()),
        Rows::Random => {
            let seed = args.seed.unwrap_or(1234);
            (Init::Random { seed }, format!("random by the seed {seed}"))
        }
    };
    let tokenizer = source::tokenizer_files(&args.tokenizer);
    let what = ExpandVocab { from: &args.model, to: &args.output, old_size, new_size, init, tokenizer };
    let mut bar: Option<Bytes> = None;
    let rows = expand_vocab(&what, &mut |done, total| {
        bar.get_or_insert_with(|| Bytes::new("expand-vocab", total)).at(done);
    })?;
    bar.into_iter().for_each(Bytes::finish);
    if !rows.left_out.is_empty() {
        say!("note: not carried over: {}", rows.left_out.join(", "));
    }
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{}: {} rows of {} in {} instead of {}; {} new, {how} ({})",
        args.output.display(),
        rows.after,
        rows.width,
        rows.dtype,
        rows.before,
        new_size - old_size,
        rows.tensors.join(", ")
    ))
}
