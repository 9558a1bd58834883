//! `swallow-engine data inspect`: what is in a token file, or in the samples of a step, decoded, and which tokens count
//! in the loss.

mod step;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use data::idx::IndexedFile;
use data::meta::Meta;
use data::tokenizer::Tokenizer;
use engine::error::{Error, Result};

use crate::output::or_broken_pipe;

#[derive(Args, Debug)]
pub struct Inspect {
    /// The token file, without .bin or .idx
    #[arg(required_unless_present = "step", conflicts_with_all = ["step", "config", "set"])]
    prefix: Option<PathBuf>,
    /// Show the samples of this step of the run that --config describes, instead of a file
    #[arg(long, value_name = "N", requires = "config")]
    step: Option<u64>,
    /// The run's configuration (TOML)
    #[arg(long, value_name = "FILE", requires = "step")]
    config: Option<PathBuf>,
    /// Replace one key of the configuration, such as train.steps=100
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    set: Vec<String>,
    /// Decode with this tokenizer [default: the one that made the file, where PREFIX.meta.json names it]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// How many documents to show
    #[arg(long, default_value_t = 3, value_name = "N", conflicts_with = "step")]
    documents: usize,
    /// The first document to show
    #[arg(long, default_value_t = 0, value_name = "I", conflicts_with = "step")]
    from: usize,
    /// How many tokens of each document or sample to show
    #[arg(long, default_value_t = 200, value_name = "N")]
    tokens: usize,
}

pub fn run(args: Inspect) -> Result<()> {
    match (&args.prefix, &args.config, args.step) {
        (Some(prefix), _, _) => inspect_file(prefix, &args),
        (None, Some(config), Some(step)) => step::inspect(step, config, &args),
        (None, _, _) => unreachable!("the command line has a prefix, or a step and a configuration"),
    }
}

fn inspect_file(prefix: &Path, args: &Inspect) -> Result<()> {
    let file = IndexedFile::open(prefix)?;
    if args.from > 0 && args.from >= file.sequences() {
        let (from, prefix, n) = (args.from, file.prefix().display(), file.sequences());
        return Err(Error::user(format!("--from {from}: {prefix} has {n} documents; the first is 0")));
    }
    let meta = file.meta().cloned().unwrap_or_default();
    let path = args.tokenizer.as_deref().or_else(|| meta.unchanged_tokenizer());
    let tokenizer = path.map(Tokenizer::open).transpose()?;
    let mut out = std::io::stdout().lock();
    let mut text = heading(&file, &meta)?;
    for i in args.from..file.sequences().min(args.from.saturating_add(args.documents)) {
        let (mut ids, length) = (Vec::new(), file.length(i)?);
        file.read(i, 0, (length as usize).min(args.tokens), &mut ids)?;
        text += &format!("\ndocument {i}: {length} tokens: {:?}\n", &ids[..ids.len().min(16)]);
        match (file.mask(), &tokenizer) {
            (Some(_), tokenizer) => {
                let mut weights = Vec::new();
                file.read_weights(i, 0, ids.len(), &mut weights)?;
                text += &runs(&ids, &weights, tokenizer.as_ref(), "  ")?;
            }
            (None, Some(tokenizer)) => text += &format!("{}\n", tokenizer.decode(&ids)?),
            (None, None) => {}
        }
        or_broken_pipe(out.write_all(text.as_bytes()))?;
        text.clear();
    }
    or_broken_pipe(out.write_all(text.as_bytes()))
}

fn heading(file: &IndexedFile, meta: &Meta) -> Result<String> {
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
    if meta.mask {
        text += "mask: tokens after [loss] count in the loss as targets, those after [----] do not\n";
    }
    Ok(text)
}

/// The tokens in runs that count and runs that do not, a line each after `indent`, decoded where the tokenizer is
/// known.
fn runs(ids: &[u32], weights: &[f32], tokenizer: Option<&Tokenizer>, indent: &str) -> Result<String> {
    let mut text = String::new();
    let mut start = 0;
    for run in weights.chunk_by(|a, b| a == b) {
        let ids = &ids[start..start + run.len()];
        let shown = shown(ids, tokenizer)?;
        let sign = if run[0] > 0.0 { "[loss]" } else { "[----]" };
        text += &format!("{indent}{sign} {start}..{}: {shown}\n", start + run.len());
        start += run.len();
    }
    Ok(text)
}

/// The ids as quoted text, or as they are where the tokenizer is unknown.
fn shown(ids: &[u32], tokenizer: Option<&Tokenizer>) -> Result<String> {
    match tokenizer {
        Some(tokenizer) => Ok(format!("{:?}", tokenizer.decode_with_controls(ids)?)),
        None => Ok(format!("{ids:?}")),
    }
}
