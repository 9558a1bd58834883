//! Feeds damaged files to every parser of outside bytes, and reports each that panics, dies, hangs or takes too much
//! memory. docs/testing.md ("Fuzzing") says how to run it, to repeat a case and to add a target.

mod campaign;
mod case;
mod mutate;
mod targets;
mod trees;
mod worker;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Feed damaged files to every parser of outside bytes
#[derive(Parser)]
#[command(after_help = "Examples:
  fuzz --minutes 120
  fuzz --target config --target cluster --inputs 100000 --seed 7
  fuzz --target config --input tests/fuzz/found/config-0123456789ab")]
struct Args {
    /// Only these targets
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
    /// Every case follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long all targets together run, in turn
    #[arg(long, default_value_t = 120.0, conflicts_with = "inputs")]
    minutes: f64,
    /// Cases of each target, instead of a time; targets that start the program get a fiftieth
    #[arg(long)]
    inputs: Option<u64>,
    /// Run one case, the files of a folder, and print how it ends
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
    /// The program that some targets start [default: swallow-engine beside this program]
    #[arg(long, default_value_os_t = beside(), hide_default_value = true)]
    engine: PathBuf,
    /// Run cases in this process and the current directory
    #[arg(long, hide = true)]
    worker: bool,
    #[arg(long, hide = true, default_value_t = 0)]
    first: u64,
    #[arg(long, hide = true, default_value_t = 1e9)]
    seconds: f64,
}

/// The cases of a worker.
enum Which {
    /// The files of a folder.
    Given(PathBuf),
    /// Numbers from `first` on, until there are `most` or the time is over.
    Numbers { first: u64, most: u64, seconds: f64 },
}

impl Which {
    /// The flags by which a worker learns of them.
    fn flags(&self) -> Vec<String> {
        match self {
            Which::Given(folder) => vec!["--input".into(), folder.display().to_string()],
            Which::Numbers { first, most, seconds } => {
                let flags = [("--first", first.to_string()), ("--inputs", most.to_string())];
                let flags = flags.into_iter().chain([("--seconds", seconds.to_string())]);
                flags.flat_map(|(flag, value)| [flag.into(), value]).collect()
            }
        }
    }
}

fn beside() -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name("swallow-engine")
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match (args.worker, &args.input) {
        (true, _) => work(&args),
        (false, Some(folder)) => campaign::rerun(&args, folder),
        (false, None) => campaign::run(&args),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::from(2)
        }
    }
}

fn work(args: &Args) -> std::io::Result<ExitCode> {
    let target = targets::named(&args.target)?;
    let most = args.inputs.unwrap_or(u64::MAX);
    let which = match &args.input {
        Some(folder) => Which::Given(folder.clone()),
        None => Which::Numbers { first: args.first, most, seconds: args.seconds },
    };
    worker::work(args, target[0], &which).map(|()| ExitCode::SUCCESS)
}
