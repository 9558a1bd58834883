//! The program `swallow-engine`: reads the command line, chooses the backend once, and turns errors
//! into exit codes. The only floor that looks at environment variables.

mod commands;
mod gpu;
mod memory;
mod output;
mod progress;
mod run;
mod survey;

use clap::{Parser, Subcommand};
use engine::error::Result;
use engine::mpi::World;
use std::process::ExitCode;

/// Trains Llama-family models under mpirun.
#[derive(Parser)]
#[command(name = "swallow-engine", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  mpirun -n 2 swallow-engine train --config configs/demo.toml
  swallow-engine data tokenize --input corpus.jsonl.gz --tokenizer tokenizer.model --output data/ja
  swallow-engine checkpoint export --from runs/7b --to export/7b
  swallow-engine evaluate --model export/7b --text held-out.txt";

#[derive(Subcommand)]
enum Command {
    Train(commands::train::Args),
    Evaluate(commands::evaluate::Args),
    Parity(commands::parity::Args),
    Plan(commands::plan::Args),
    Report(commands::report::Args),
    Topology(commands::topology::Args),
    /// Make and look at token files
    Data(commands::data::Args),
    /// Train and try tokenizers
    Tokenizer(commands::tokenizer::Args),
    /// Hugging Face checkpoints in and out, and a look inside the engine's own
    Checkpoint(commands::checkpoint::Args),
    /// Compile the CUDA kernels beforehand, and see which ones a run would take
    Kernels(commands::kernels::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if speaks() {
                error.print().ok();
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let code = match cli.command {
        Command::Train(args) if args.dry_run => alone(|| commands::train::dry_run(args)),
        Command::Train(args) => on_all_ranks(|world| commands::train::run(args, world)),
        Command::Evaluate(args) => on_all_ranks(|world| commands::evaluate::run(args, world)),
        Command::Parity(args) => on_all_ranks(|world| commands::parity::run(args, world)),
        Command::Plan(args) => alone(|| commands::plan::run(args)),
        Command::Report(args) => alone(|| commands::report::run(args)),
        Command::Topology(args) => on_all_ranks(|world| commands::topology::run(args, world)),
        Command::Data(args) => alone(|| commands::data::run(args)),
        Command::Tokenizer(args) => alone(|| commands::tokenizer::run(args)),
        Command::Checkpoint(args) => alone(|| commands::checkpoint::run(args)),
        Command::Kernels(args) => alone(|| commands::kernels::run(args)),
    };
    ExitCode::from(code)
}

/// Under MPI. An error is the same on all ranks; the first speaks before any leaves, since mpirun
/// ends all as soon as one has left with a code.
fn on_all_ranks(work: impl FnOnce(&mut World) -> Result<()>) -> u8 {
    let mut world = match World::start() {
        Ok(world) => world,
        Err(error) => return told(Err(error)),
    };
    let code = told(work(&mut world));
    world.comm().barrier();
    code
}

/// The exit code, after saying what went wrong: one message, not one a rank.
fn told(result: Result<()>) -> u8 {
    let Err(error) = result else {
        return 0;
    };
    if speaks() {
        eprintln!("error: {error}");
    }
    error.exit_code() as u8
}

/// Commands for one process: under mpirun the first rank does the work and the others leave.
fn alone(work: impl FnOnce() -> Result<()>) -> u8 {
    if speaks() { told(work()) } else { 0 }
}

/// Did Open MPI's mpirun start this process?
fn under_mpirun() -> bool {
    std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some()
}

/// The number of ranks that mpirun started.
fn ranks_of_mpirun() -> Option<usize> {
    std::env::var("OMPI_COMM_WORLD_SIZE").ok()?.parse().ok()
}

/// Is this the first rank? mpirun and srun say it before MPI is started.
fn speaks() -> bool {
    let rank = |name: &str| std::env::var(name).ok();
    ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"].into_iter().find_map(rank).is_none_or(|rank| rank == "0")
}
