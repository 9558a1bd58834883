//! Every CUDA kernel on the device at the shapes of real models, timed between events of the device, over sets of random
//! tensors that are larger than its cache together. First each is held to the emulator.
//!
//! `cargo bench --bench kernels [-- FILTER] [--json FILE]`. The file gets a line for each kernel, which
//! `tests/gpu.sh` sets beside PyTorch's. Without a GPU this says so and is done.

mod case;
mod cases;
mod check;
mod set;

use case::{Case, Pool, Work};
use criterion::{Criterion, Throughput};
use cuda::compile::Places;
use cuda::device::Device;
use serde_json::{Value, json};
use set::Set;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Samples of a case that count.
const SAMPLES: usize = 15;
/// Bytes of each of the two blocks that the device copies between.
const COPIED: usize = 1 << 30;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What the command line asks for.
#[derive(Default)]
struct Args {
    /// Cases whose name holds this.
    filter: Option<String>,
    json: Option<String>,
}

fn args(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo says this to every benchmark.
            "--bench" => {}
            "--json" => args.json = Some(words.next().ok_or("--json needs a file")?),
            flag if flag.starts_with('-') => return Err(format!("there is no flag {flag}: [FILTER] [--json FILE]")),
            _ => args.filter = Some(word),
        }
    }
    Ok(args)
}

fn main() -> ExitCode {
    let done = args(std::env::args().skip(1)).map_err(Into::into).and_then(|args| run(&args));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kernels: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all kernels are right.
fn run(args: &Args) -> Outcome<bool> {
    if cuda::devices()?.is_empty() {
        println!("kernels: no GPU here, nothing is measured");
        return Ok(true);
    }
    let (device, notes) = Device::open(0, &Places::of(|name| std::env::var_os(name), None))?;
    notes.iter().for_each(|note| println!("kernels: {note}"));
    let mut out = args.json.as_ref().map(File::create).transpose()?;
    let mut write = |line: Value| out.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"));
    let copy = copy_rate(&device)?;
    write(machine(&device, copy))?;

    let (pool, mut criterion, mut right) = (Pool::new(), criterion(), true);
    let full = cases::cases(&cases::FULL, device_processors(&device));
    check_all(&device, &pool, &mut |line| {
        right &= line["error"].is_null();
        write(line)
    })?;
    for case in full.iter().filter(|case| args.filter.as_ref().is_none_or(|f| case.name.contains(f.as_str()))) {
        let seconds = measure(&mut criterion, &device, case, &pool)?;
        write(line(case, seconds, copy))?;
    }
    Ok(right)
}
