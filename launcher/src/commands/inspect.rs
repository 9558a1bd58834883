//! `swallow-engine data inspect`: what is in a token file, decoded, and which tokens count in the loss.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Args;
use data::idx::IndexedFile;
use data::meta::Meta;
use data::tokenizer::Tokenizer;
use data::writer::MASK;
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
    let meta = Meta::read(file.prefix()).unwrap_or_default();
    let path = args.tokenizer.or_else(|| meta.unchanged_tokenizer().map(PathBuf::from));
    let tokenizer = path.as_deref().map(Tokenizer::open).transpose()?;
    let mask = if meta.mask { Some(Mask::open(file.prefix())?) } else { None };
    let mut out = std::io::stdout().lock();
    let mut text = heading(&file, &meta)?;
    for i in args.from..file.sequences().min(args.from.saturating_add(args.documents)) {
        let mut ids = Vec::new();
        file.read(i, 0, (file.length(i) as usize).min(args.tokens), &mut ids)?;
        text += &format!("\ndocument {i}: {} tokens: {:?}\n", file.length(i), &ids[..ids.len().min(16)]);
        match (&mask, &tokenizer) {
            (Some(mask), tokenizer) => {
                let first = file.stored_pointer(i) as u64 / file.kind().size() as u64;
                text += &runs(&ids, &mask.read(first, ids.len())?, tokenizer.as_ref())?;
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
fn runs(ids: &[u32], mask: &[u8], tokenizer: Option<&Tokenizer>) -> Result<String> {
    let mut text = String::new();
    let mut start = 0;
    for run in mask.chunk_by(|a, b| a == b) {
        let ids = &ids[start..start + run.len()];
        let shown = match tokenizer {
            Some(tokenizer) => format!("{:?}", tokenizer.decode_with_controls(ids)?),
            None => format!("{ids:?}"),
        };
        let sign = if run[0] == 1 { "[loss]" } else { "[----]" };
        text += &format!("  {sign} {start}..{}: {shown}\n", start + run.len());
        start += run.len();
    }
    Ok(text)
}

/// `PREFIX.mask.bin`.
struct Mask {
    file: File,
    path: PathBuf,
}

impl Mask {
    fn open(prefix: &Path) -> Result<Self> {
        let path = data::writer::beside(prefix, MASK);
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(Self { file, path })
    }

    /// The bytes of `count` tokens.
    fn read(&self, first: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, first).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::user(format!("{}: is shorter than the .bin has tokens; tokenize again", self.path.display()))
            }
            _ => Error::io(&self.path, e),
        })?;
        match bytes.iter().find(|&&byte| byte > 1) {
            Some(byte) => {
                let path = self.path.display();
                Err(Error::user(format!("{path}: has the byte {byte}, but a mask holds 0 and 1; tokenize again")))
            }
            None => Ok(bytes),
        }
    }
}
