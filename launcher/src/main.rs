//! The program `swallow-engine`: reads the command line, runs the command on one process or on all ranks, and turns
//! errors into exit codes. Only this crate reads environment variables.

mod agreement;
mod commands;
mod expert_load;
mod first_step;
mod gpu;
mod history;
mod ideal;
mod informative;
mod launch;
mod library_settings;
mod lock;
mod log_writer;
mod logs;
mod memory;
mod origin;
mod output;
mod progress;
mod questions;
mod rank_sampler;
mod resume;
mod run;
mod run_dir;
mod status;
mod stops;
mod table;
mod task_scores;
mod terminal;
mod validation;
mod watchdog;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use engine::checkpoint;
use engine::error::Result;
use engine::mpi::World;
use launch::{Launch, ranks_of_mpirun, under_mpirun};
use output::say;
use std::process::ExitCode;
use std::time::Instant;
use stops::StopRequests;
use watchdog::Starting;

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

/// Columns of a usage line.
const USAGE_WIDTH: usize = 80;

#[derive(Subcommand)]
enum Command {
    Train(commands::train::Args),
    Evaluate(commands::evaluate::Args),
    Compare(commands::compare::Args),
    Parity(commands::parity::Args),
    Plan(commands::plan::Args),
    Report(commands::report::Args),
    Status(commands::status::Args),
    Topology(commands::topology::Args),
    /// Filter and deduplicate documents; write token files, inspect and check them
    Data(commands::data::Args),
    /// Train tokenizers, encode and decode text
    Tokenizer(commands::tokenizer::Args),
    /// Import and export Hugging Face checkpoints, inspect and verify a run's own
    Checkpoint(commands::checkpoint::Args),
    /// Compile the CUDA kernels ahead of time, and show which ones a run would use
    Kernels(commands::kernels::Args),
}

fn main() -> ExitCode {
    let started = Instant::now();
    library_settings::request();
    checkpoint::report_file_size_limits();
    let launch = Launch::of_this_process();
    let mut command = Cli::command();
    command.build();
    let matches = wrap_usage(command).try_get_matches();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            if launch.is_first_rank() {
                error.print().ok();
            }
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let code = match cli.command {
        Command::Train(args) if args.dry_run => on_one_process(&launch, || commands::train::dry_run(args)),
        // Signals are received before MPI starts threads of its own.
        Command::Train(args) => match StopRequests::listen(started) {
            Ok(stops) => on_all_ranks(&launch, |world| commands::train::run(args, world, stops)),
            Err(error) => exit_code(&launch, Err(error)),
        },
        Command::Evaluate(args) => on_all_ranks(&launch, |world| commands::evaluate::run(args, world)),
        Command::Compare(args) => on_one_process(&launch, || commands::compare::run(args)),
        Command::Parity(args) => on_all_ranks(&launch, |world| commands::parity::run(args, world)),
        Command::Plan(args) => on_one_process(&launch, || commands::plan::run(args)),
        Command::Report(args) => on_one_process(&launch, || commands::report::run(args)),
        Command::Status(args) => on_one_process(&launch, || commands::status::run(args)),
        Command::Topology(args) => on_all_ranks(&launch, |world| commands::topology::run(args, world)),
        Command::Data(args) => on_one_process(&launch, || commands::data::run(args)),
        Command::Tokenizer(args) => on_one_process(&launch, || commands::tokenizer::run(args)),
        Command::Checkpoint(args) => on_one_process(&launch, || commands::checkpoint::run(args)),
        Command::Kernels(args) => on_one_process(&launch, || commands::kernels::run(args)),
    };
    ExitCode::from(code)
}

/// Breaks usage lines that are wider than a terminal, which clap does not do.
fn wrap_usage(command: clap::Command) -> clap::Command {
    let mut command = command.mut_subcommands(wrap_usage);
    let usage = command.render_usage().to_string();
    if usage.len() <= USAGE_WIDTH {
        return command;
    }
    let mut lines = vec![String::new()];
    for part in usage.trim_start_matches("Usage: ").replace(" --", "\n --").split('\n') {
        let line = lines.last_mut().expect("there is one from the start");
        match "Usage: ".len() + line.len() + part.len() <= USAGE_WIDTH {
            true => line.push_str(part),
            false => lines.push(format!("  {}", part.trim_start())),
        }
    }
    command.override_usage(lines.join("\n       "))
}

/// Runs a command under MPI. Every rank has the same error, and the first rank prints it before any rank leaves, since
/// mpirun ends all ranks as soon as one has left with a code.
fn on_all_ranks(launch: &Launch, work: impl FnOnce(&mut World) -> Result<()>) -> u8 {
    let starting = Starting::begin();
    let mut world = match World::start() {
        Ok(world) => world,
        Err(error) => return exit_code(launch, Err(error)),
    };
    drop(starting);
    let checked = launch.check_world_size(world.comm().size()).and_then(|()| agreement::on_program(world.comm()));
    let code = exit_code(launch, checked.and_then(|()| work(&mut world)));
    world.comm().barrier();
    code
}

/// Runs a command of one process: under mpirun the first rank does the work and the others leave.
fn on_one_process(launch: &Launch, work: impl FnOnce() -> Result<()>) -> u8 {
    if launch.is_first_rank() { exit_code(launch, work()) } else { 0 }
}

/// The exit code of a result, after the first rank has printed the error.
fn exit_code(launch: &Launch, result: Result<()>) -> u8 {
    let Err(error) = result else {
        return 0;
    };
    if launch.is_first_rank() {
        say!("error: {error}");
    }
    error.exit_code() as u8
}
