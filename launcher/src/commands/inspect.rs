//! `swallow-engine data inspect`: what is in a token file, decoded, and which tokens count in the loss.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use data::idx::IndexedFile;
use data::meta::Meta;
use data::tokenizer::Tokenizer;
use engine::error::{Error, Result};

use crate::output::or_broken_pipe;

#[derive(Args, Debug)]
pub struct Inspect {
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

pub fn run(args: Inspect) -> Result<()> {
    let file = IndexedFile::open(&args.prefix)?;
    if args.from > 0 && args.from >= file.sequences() {
        let (from, prefix, n) = (args.from, file.prefix().display(), file.sequences());
        return Err(Error::user(format!("--from {from}: {prefix} has {n} documents; the first is 0")));
    }
    let meta = file.meta().cloned().unwrap_or_default();
    let path = args.tokenizer.or_else(|| meta.unchanged_tokenizer().map(PathBuf::from));
    let tokenizer = path.as_deref().map(Tokenizer::open).transpose()?;
    let mut out = std::io::stdout().lock();
    let mut text = heading(&file, &meta)?;
    for i in args.from..file.sequences().min(args.from.saturating_add(args.documents)) {
        let mut ids = Vec::new();
        file.read(i, 0, (file.length(i) as usize).min(args.tokens), &mut ids)?;
        text += &format!("\ndocument {i}: {} tokens: {:?}\n", file.length(i), &ids[..ids.len().min(16)]);
        match (file.mask(), &tokenizer) {
            (Some(mask), tokenizer) => {
                let (first, mut weights) = (file.stored_pointer(i) as usize / file.kind().size(), Vec::new());
                mask.read(first, ids.len(), &mut weights)?;
                text += &runs(&ids, &weights, tokenizer.as_ref())?;
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

/// The tokens in runs that count and runs that do not, a line each, decoded where the tokenizer is known.
fn runs(ids: &[u32], weights: &[f32], tokenizer: Option<&Tokenizer>) -> Result<String> {
    let mut text = String::new();
    let mut start = 0;
    for run in weights.chunk_by(|a, b| a == b) {
        let ids = &ids[start..start + run.len()];
        let shown = match tokenizer {
            Some(tokenizer) => format!("{:?}", tokenizer.decode_with_controls(ids)?),
            None => format!("{ids:?}"),
        };
        let sign = if run[0] > 0.0 { "[loss]" } else { "[----]" };
        text += &format!("  {sign} {start}..{}: {shown}\n", start + run.len());
        start += run.len();
    }
    Ok(text)
}
