//! `checkpoint upcycle`: makes a mixture of experts of a dense Hugging Face model.

use std::io::Write as _;
use std::path::PathBuf;

use engine::checkpoint::{Upcycle, upcycle};
use engine::error::{Error, Result, counted};
use engine::model::flops;

use crate::output::or_broken_pipe;
use crate::progress::Bytes;

/// The examples of `--help`.
pub const EXAMPLES: &str = "Examples:
  swallow-engine checkpoint upcycle --model Llama-3.1-8B --experts 8 --top-k 2 --output 8x8b
  swallow-engine checkpoint upcycle --model Qwen3-0.6B --experts 16 --top-k 4 \\
      --reinit-ratio 0.5 --seed 7 --output 16x0.6b

A llama or mistral becomes a mixtral, a qwen3 a qwen3_moe. The router is random, all other tensors
are carried over, and the type of the weights stays. Without --reinit-ratio the new model computes
what the dense one does. The model may be of any size: tensors are read and written in bands.";

#[derive(clap::Args)]
pub struct Args {
    /// Directory with config.json and model.safetensors or its shards
    #[arg(long, value_name = "HF_DIR")]
    model: PathBuf,
    /// Experts of each layer
    #[arg(long, value_name = "N")]
    experts: usize,
    /// Experts of a token
    #[arg(long, value_name = "K")]
    top_k: usize,
    /// Part of each expert's intermediate columns that is drawn anew, from 0 to 1, with the mean and the deviation that
    /// the dense model has there (Drop-Upcycling)
    #[arg(long, value_name = "R", default_value_t = 0.0, allow_negative_numbers = true)]
    reinit_ratio: f64,
    /// Seed of the router, of the choice of columns and of their new values
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u32,
    /// Directory to write: a new or empty one, or an earlier export, which is replaced
    #[arg(long, value_name = "HF_DIR")]
    output: PathBuf,
}

pub fn run(args: Args) -> Result<()> {
    if !args.model.is_dir() {
        let what = "this is not a directory; give the one of a Hugging Face model";
        return Err(Error::user(format!("--model {}: {what}", args.model.display())));
    }
    let Args { experts, top_k: per_token, reinit_ratio, seed, .. } = args;
    let what = Upcycle { experts, per_token, reinit_ratio, seed };
    let mut bar: Option<Bytes> = None;
    let done = upcycle(&what, &args.model, &args.output, &mut |done, total| {
        bar.get_or_insert_with(|| Bytes::new("upcycle", total)).at(done);
    })?;
    bar.into_iter().for_each(Bytes::finish);
    or_broken_pipe(writeln!(
        std::io::stdout(),
        "{}: {} parameters in {}, {} of them active; {} in each of {}, {per_token} for a token; {} of {} columns of \
         each expert drawn anew",
        args.output.display(),
        flops::parameters(&done.model),
        done.dtype,
        flops::active_parameters(&done.model),
        counted(experts, "expert"),
        counted(done.model.num_hidden_layers, "layer"),
        done.columns,
        done.model.intermediate_size,
    ))
}
