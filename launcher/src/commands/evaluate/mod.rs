//! `evaluate`: the loss of a Hugging Face checkpoint on a text, or its scores in tasks.

mod model;
mod results;
mod tasks;
mod text;

use std::path::PathBuf;

use data::tokenizer::{ControlTokens, Tokenizer};
use engine::checkpoint::HuggingFace;
use engine::config::{Model, hf};
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};

use super::texts::{SpecialTokens, TextFlags};
use crate::agreement;
use crate::questions::Encoder;

/// Score a Hugging Face checkpoint: its loss on a text, or its answers to the questions of tasks
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory with config.json and model.safetensors
    #[arg(long)]
    model: PathBuf,
    /// SentencePiece .model or tokenizer.json [default: the one in the model's directory]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// How to encode a special (control) token that the text spells out
    #[arg(long, value_enum, value_name = "HOW", default_value_t = SpecialTokens::Text)]
    special_tokens: SpecialTokens,
    /// A text to score: a file that `data tokenize` reads (.txt, .jsonl; also .gz, .zst), or - for standard input.
    /// Prints nats per token and character, bits per byte, perplexity
    #[arg(long, value_name = "FILE", required_unless_present = "tasks", conflicts_with = "tasks")]
    text: Option<PathBuf>,
    #[command(flatten)]
    texts: TextFlags,
    /// Documents of the text are split at this; each piece is stripped of white space and scored alone
    #[arg(long, default_value = "<|endoftext|>", conflicts_with = "tasks")]
    separator: String,
    /// Score longer pieces in windows of this many tokens, which do not overlap [default: the model's positions, or the
    /// longest piece where that is shorter]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "tasks")]
    window: Option<u64>,
    /// Task files to score instead of a text; docs/evaluation.md describes them
    #[arg(long, value_name = "FILE.toml", num_args = 1..)]
    tasks: Vec<PathBuf>,
    #[command(flatten)]
    of_tasks: tasks::Flags,
    #[command(flatten)]
    layout: model::Flags,
}

const EXAMPLES: &str = "\
Where the tokenizer has a BOS token, it is put before each piece of a text and each question. Ranks share the model by
--tensor and --pipeline, and what is left of them share the pieces or questions.

Examples:
  swallow-engine evaluate --model stories260K/hf --text tinystories.txt
  swallow-engine evaluate --model export/7b --text held-out.jsonl.gz --key content --window 2048
  mpirun -n 4 swallow-engine evaluate --model export/7b --text wiki.txt --tokenizer tokenizer.model
  swallow-engine evaluate --model models/7b --tasks configs/tasks/niilc.toml --output scores/before
  swallow-engine evaluate --model export/7b --tasks configs/tasks/niilc.toml --against scores/before
  mpirun -n 8 swallow-engine evaluate --model export/70b --tasks configs/tasks/*.toml --tensor 8";

pub fn run(args: Args, world: &World) -> Result<()> {
    match (&args.text, args.texts.given()) {
        (Some(_), _) => text::run(args, world),
        (None, None) => tasks::run(args, world),
        (None, Some(flag)) => {
            let error = format!("{flag}: belongs to --text; a task file says how its data is read");
            Err(Error::user(error))
        }
    }
}

/// The files of a model.
struct Opened {
    model: Model,
    weights: HuggingFace,
    encoder: Encoder,
}

impl Opened {
    /// All ranks must read the same files, else the score would be that of no model. Collective.
    fn on_all_ranks(args: &Args, comm: &Comm) -> Result<Self> {
        let path = args.tokenizer.as_ref().unwrap_or(&args.model);
        let controls: ControlTokens = args.special_tokens.control_tokens();
        let open = || -> Result<_> {
            let model = hf::read_model(&args.model)?;
            let weights = HuggingFace::open(&args.model, &model)?;
            let tokenizer = Tokenizer::open_with(path, controls)?;
            let identities = [format!("{:?} {}", model.identity(), weights.fingerprint()?), tokenizer.fingerprint()?];
            let (positions, vocab_size) = (model.max_position_embeddings, model.vocab_size);
            let encoder = Encoder { tokenizer, positions, vocab_size };
            Ok((Self { model, weights, encoder }, identities))
        };
        let (opened, [of_model, of_tokenizer]) = comm.agree(open())?;
        agreement::on_files(&format!("--model {}", args.model.display()), &of_model, comm)?;
        let flag = if args.tokenizer.is_some() { "--tokenizer" } else { "the tokenizer of --model" };
        agreement::on_files(&format!("{flag} {}", path.display()), &of_tokenizer, comm)?;
        Ok(opened)
    }
}
