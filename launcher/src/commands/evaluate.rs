//! `evaluate`: the loss of a Hugging Face checkpoint on a text.

use std::io::Write;
use std::path::PathBuf;

use data::text::Inputs;
use data::tokenizer::Tokenizer;
use engine::checkpoint::HuggingFace;
use engine::config::{Model, hf};
use engine::cpu::{Cpu, cores};
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};
use engine::train::eval::{Score, Scorer};

use super::texts::{SpecialTokens, TextFlags};
use crate::agreement;
use crate::output::or_broken_pipe;

/// Score a text with a Hugging Face checkpoint: nats per token and character, bits per byte, perplexity
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory with config.json and model.safetensors
    #[arg(long)]
    model: PathBuf,
    /// The text: a file that `data tokenize` reads (.txt, .jsonl; also .gz, .zst), or - for standard input
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    #[command(flatten)]
    texts: TextFlags,
    /// Documents are split at this; each piece is stripped of white space and scored alone
    #[arg(long, default_value = "<|endoftext|>")]
    separator: String,
    /// SentencePiece .model or tokenizer.json [default: the one in the model's directory]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// How to encode a special (control) token that the text spells out
    #[arg(long, value_enum, value_name = "HOW", default_value_t = SpecialTokens::Text)]
    special_tokens: SpecialTokens,
    /// Score longer pieces in windows of this many tokens, which do not overlap [default: the model's positions, or the
    /// longest piece where that is shorter]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    window: Option<u64>,
}

const EXAMPLES: &str = "\
Where the tokenizer has a BOS token, it is put before each piece.

Examples:
  swallow-engine evaluate --model stories260K/hf --text tinystories.txt
  swallow-engine evaluate --model export/7b --text held-out.jsonl.gz --key content --window 2048
  mpirun -n 4 swallow-engine evaluate --model export/7b --text wiki.txt --tokenizer tokenizer.model";

/// The pieces of text that are scored, and how long they are together.
struct Texts {
    pieces: Vec<String>,
    characters: usize,
    bytes: usize,
}

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let share = cores::share(comm);
    let Opened { model, weights, tokenizer } = Opened::on_all_ranks(&args, comm)?;
    let inputs = args.texts.inputs(vec![args.text]);
    let texts = read_on_first(&inputs, &args.separator, comm)?;
    let ready = || -> Result<_> {
        let window = window(args.window, &model)?;
        let mine = texts.pieces.iter().skip(comm.rank()).step_by(comm.size());
        let ids = mine.map(|piece| encode(piece, &tokenizer, &model)).collect::<Result<Vec<_>>>()?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or_default();
        let scorer = Scorer::new(Cpu::<f32>::new(share.threads), &model, longest.min(window), |tensor, rect, out| {
            weights.read_parameter(tensor, rect, out)
        })?;
        Ok((scorer, ids))
    };
    let (mut scorer, ids) = comm.agree(ready())?;
    let score = comm.agree(scorer.score(&ids))?;
    let score = comm.all_gather_bytes(&[score.nats.to_le_bytes(), score.tokens.to_le_bytes()].concat());
    let score = score.iter().map(|bytes| decode(bytes)).fold(Score::default(), |a, b| a + b);
    if score.tokens == 0 {
        let name = inputs.paths[0].display();
        return Err(Error::user(format!("{name}: no text to score: every piece has one token at most")));
    }
    if comm.rank() == 0 {
        print(&score, &texts)?;
    }
    Ok(())
}

/// The files of a model.
struct Opened {
    model: Model,
    weights: HuggingFace,
    tokenizer: Tokenizer,
}

impl Opened {
    /// All ranks must read the same files, else the score would be that of no model. Collective.
    fn on_all_ranks(args: &Args, comm: &Comm) -> Result<Self> {
        let path = args.tokenizer.as_ref().unwrap_or(&args.model);
        let open = || -> Result<_> {
            let model = hf::read_model(&args.model)?;
            let weights = HuggingFace::open(&args.model, &model)?;
            let tokenizer = Tokenizer::open_with(path, args.special_tokens.control_tokens())?;
            let identities = [format!("{:?} {}", model.identity(), weights.fingerprint()?), tokenizer.fingerprint()?];
            Ok((Self { model, weights, tokenizer }, identities))
        };
        let (opened, [of_model, of_tokenizer]) = comm.agree(open())?;
        agreement::on_files(&format!("--model {}", args.model.display()), &of_model, comm)?;
        let flag = if args.tokenizer.is_some() { "--tokenizer" } else { "the tokenizer of --model" };
        agreement::on_files(&format!("{flag} {}", path.display()), &of_tokenizer, comm)?;
        Ok(opened)
    }
}

/// Rank 0 reads the texts for all, since only rank 0 has standard input.
fn read_on_first(inputs: &Inputs, separator: &str, comm: &Comm) -> Result<Texts> {
    let read = || Ok(serde_json::to_vec(&read(inputs, separator)?).expect("strings are JSON"));
    let pieces: Vec<String> = serde_json::from_slice(&comm.on_first(read)?).expect("rank 0 sent strings");
    let characters = pieces.iter().map(|piece| piece.chars().count()).sum();
    let bytes = pieces.iter().map(String::len).sum();
    Ok(Texts { pieces, characters, bytes })
}

fn read(inputs: &Inputs, separator: &str) -> Result<Vec<String>> {
    if separator.is_empty() {
        return Err(Error::user("--separator \"\": must not be empty; name what stands between two texts"));
    }
    let mut pieces = Vec::new();
    inputs.for_each_document(|document| {
        let stripped = document.split(separator).map(str::trim).filter(|piece| !piece.is_empty());
        pieces.extend(stripped.map(str::to_string));
        Ok(())
    })?;
    if pieces.is_empty() {
        return Err(Error::user(format!("{}: no text to score", inputs.paths[0].display())));
    }
    Ok(pieces)
}

fn window(asked: Option<u64>, model: &Model) -> Result<usize> {
    let positions = model.max_position_embeddings;
    match asked {
        Some(window) if window > positions as u64 => Err(Error::user(format!(
            "--window {window}: must be at most max_position_embeddings of the model, {positions}"
        ))),
        asked => Ok(asked.map_or(positions, |window| window as usize)),
    }
}

/// The ids of a piece, after BOS where the tokenizer has one.
fn encode(piece: &str, tokenizer: &Tokenizer, model: &Model) -> Result<Vec<u32>> {
    let mut ids: Vec<u32> = tokenizer.bos().into_iter().collect();
    ids.extend(tokenizer.encode_long(piece)?);
    if let Some(id) = ids.iter().find(|&&id| id as usize >= model.vocab_size) {
        return Err(Error::user(format!(
            "{}: gives the id {id}, but the model has vocab_size {}; use the tokenizer that the model was trained with",
            tokenizer.path().display(),
            model.vocab_size
        )));
    }
    Ok(ids)
}

fn decode(bytes: &[u8]) -> Score {
    let (nats, tokens) = bytes.split_at(8);
    let eight = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).expect("a score is two numbers of 8 bytes");
    Score { nats: f64::from_le_bytes(eight(nats)), tokens: u64::from_le_bytes(eight(tokens)) }
}

fn print(score: &Score, texts: &Texts) -> Result<()> {
    let mean = score.nats / score.tokens as f64;
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "nats per token      {mean:.4}\n\
         nats per character  {:.4}\n\
         bits per byte       {:.4}\n\
         perplexity          {:.4}\n\
         tokens              {}\n\
         characters          {}\n\
         bytes               {}",
        score.nats / texts.characters as f64,
        score.nats / std::f64::consts::LN_2 / texts.bytes as f64,
        mean.exp(),
        score.tokens,
        texts.characters,
        texts.bytes
    ))
}
