//! `evaluate`: the loss of a Hugging Face checkpoint on a text.

use super::tokenizer::or_broken_pipe;
use data::tokenizer::Tokenizer;
use engine::checkpoint::HuggingFace;
use engine::config::hf;
use engine::cpu::{Cpu, cores};
use engine::error::{Error, Result};
use engine::mpi::World;
use engine::train::eval::{Score, Scorer};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Score a text with a Hugging Face checkpoint: nats per token and character, perplexity
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory with config.json and model.safetensors
    #[arg(long)]
    model: PathBuf,
    /// UTF-8 text
    #[arg(long)]
    text: PathBuf,
    /// What stands between texts; each is stripped and scored alone
    #[arg(long, default_value = "<|endoftext|>")]
    separator: String,
    /// SentencePiece .model or tokenizer.json [default: the one in the model's directory]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  swallow-engine evaluate --model stories260K/hf --text tinystories.txt
  mpirun -n 4 swallow-engine evaluate --model export/7b --text wiki.txt --tokenizer tokenizer.model";

/// The texts as token ids, and the characters they were made from.
struct Texts {
    ids: Vec<Vec<u32>>,
    characters: usize,
}

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let share = cores::share(comm);
    let ready = || -> Result<_> {
        let model = hf::read_model(&args.model)?;
        let weights = HuggingFace::open(&args.model, &model)?;
        let texts = read_texts(&args, model.vocab_size)?;
        let longest = texts.ids.iter().map(Vec::len).max().unwrap_or_default();
        let scorer = Scorer::new(Cpu::<f32>::new(share.threads), &model, longest, |tensor, rect, out| {
            weights.read(&tensor.name, rect, out)
        })?;
        Ok((scorer, texts))
    };
    let (mut scorer, texts) = comm.agree(ready())?;
    let mine: Vec<Vec<u32>> = texts.ids.iter().skip(comm.rank()).step_by(comm.size()).cloned().collect();
    let score = comm.agree(scorer.score(&mine))?;
    let score = comm.all_gather_bytes(&[score.nats.to_le_bytes(), score.tokens.to_le_bytes()].concat());
    let score = score.iter().map(|bytes| decode(bytes)).fold(Score::default(), |a, b| a + b);
    if comm.rank() == 0 {
        print(&score, texts.characters)?;
    }
    Ok(())
}

fn read_texts(args: &Args, vocab_size: usize) -> Result<Texts> {
    let path = match &args.tokenizer {
        Some(path) => path.clone(),
        None => beside(&args.model)?,
    };
    let tokenizer = Tokenizer::open(&path)?;
    let bytes = std::fs::read(&args.text).map_err(|e| Error::io(&args.text, e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::user(format!(
            "{}: not UTF-8 at byte {}; convert it first",
            args.text.display(),
            e.utf8_error().valid_up_to()
        ))
    })?;
    if args.separator.is_empty() {
        return Err(Error::user("--separator \"\": give the text that stands between two texts"));
    }
    let pieces: Vec<&str> = text.split(&args.separator).map(str::trim).filter(|piece| !piece.is_empty()).collect();
    let mut ids = Vec::with_capacity(pieces.len());
    for piece in &pieces {
        let mut piece = tokenizer.encode(piece)?;
        if let Some(bos) = tokenizer.bos() {
            piece.insert(0, bos);
        }
        if let Some(&id) = piece.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::user(format!(
                "{}: gives id {id}, but {} has vocab_size {vocab_size}; use the tokenizer that the model was made with",
                path.display(),
                args.model.join("config.json").display()
            )));
        }
        ids.push(piece);
    }
    if ids.iter().all(|ids| ids.len() < 2) {
        return Err(Error::user(format!("{}: no text to score", args.text.display())));
    }
    Ok(Texts { ids, characters: pieces.iter().map(|piece| piece.chars().count()).sum() })
}

/// The tokenizer that came with the model.
fn beside(model: &Path) -> Result<PathBuf> {
    let found =
        ["tokenizer.model", "tokenizer.json"].map(|name| model.join(name)).into_iter().find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::user(format!("{}: has no tokenizer.model or tokenizer.json; name one with --tokenizer", model.display()))
    })
}

fn decode(bytes: &[u8]) -> Score {
    let (nats, tokens) = bytes.split_at(8);
    let eight = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).expect("a score is two numbers of 8 bytes");
    Score { nats: f64::from_le_bytes(eight(nats)), tokens: u64::from_le_bytes(eight(tokens)) }
}

fn print(score: &Score, characters: usize) -> Result<()> {
    let mean = score.nats / score.tokens as f64;
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "nats per token      {mean:.4}\n\
         nats per character  {:.4}\n\
         perplexity          {:.4}\n\
         tokens              {}\n\
         characters          {characters}",
        score.nats / characters as f64,
        mean.exp(),
        score.tokens
    ))
}
