//! Times every CUDA kernel on the device at the shapes of real models, between events of the device, over sets of
//! random tensors that together exceed its cache. First a small version of each case is compared with the emulator.
//!
//! `cargo bench --bench kernels [-- FILTER] [--json FILE]`. The file gets one line per kernel, which `tests/gpu.sh`
//! compares with PyTorch's. Without a GPU nothing is measured.

mod case;
mod cases;
mod check;
mod set;

use case::{Case, Pool, Work};
use criterion::{Criterion, Throughput};
use cuda::blas::{self, Blas};
use cuda::compile::Places;
use cuda::device::Device;
use cuda::machine::Machine;
use cuda::tensor::View;
use serde_json::{Value, json};
use set::Set;
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// Samples per case that count.
const SAMPLES: usize = 15;
/// Target duration of a sample in seconds.
const SAMPLE: f64 = 0.005;
/// Bytes of a block in the measurement of the copy bandwidth.
const COPIED: usize = 1 << 30;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// The command line.
#[derive(Default)]
struct Args {
    /// Only cases whose name contains this.
    filter: Option<String>,
    json: Option<String>,
}

fn args(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo passes this to every benchmark.
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

/// Runs all cases. Returns whether all results were right.
fn run(args: &Args) -> Outcome<bool> {
    if cuda::devices()?.is_empty() {
        println!("kernels: this machine has no GPU, nothing is measured");
        return Ok(true);
    }
    let places = Places::of(|name| std::env::var_os(name), None);
    let (device, notes) = Device::open(0, &places)?;
    let device = Rc::new(device);
    notes.iter().for_each(|note| println!("kernels: {note}"));
    let mut out = args.json.as_ref().map(File::create).transpose()?;
    let mut write = |line: Value| out.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"));
    let copied = copy_rate(&device)?;
    println!("{}: copies {:.0} GB/s (read and written)", device.info().name, copied / 1e9);
    write(about(&device, copied))?;

    let (pool, mut criterion, mut right) = (Pool::new(), criterion(), true);
    let asked = |case: &&Case| args.filter.as_ref().is_none_or(|filter| case.name.contains(filter.as_str()));
    let (processors, target) = (device.processors(), device.target());
    let small = cases::cases(&cases::SMALL, processors, target);
    let on_host = cases::cases(&cases::SMALL, emulator::PROCESSORS, target);
    for (case, on_host) in small.iter().zip(&on_host).filter(|(case, _)| asked(case)) {
        if let Err(error) = check::check(&device, case, on_host, &pool) {
            right = false;
            println!("{} {} {}: WRONG: {error}", case.name, case.shape, case.variant);
            write(json!({ "name": case.name, "shape": case.shape, "variant": case.variant, "error": error }))?;
        }
    }
    let workspace = device.alloc(blas::workspace(target))?;
    // SAFETY: the workspace lives until the end of this function, and only this library uses it.
    let space = unsafe { View::new(workspace.at(), workspace.len()) };
    let blas = Rc::new(Blas::open(device.clone(), places.search(), None, space)?);
    let mut full = cases::cases(&cases::FULL, processors, target);
    full.extend(cases::experts::by_library(&cases::FULL, &blas));
    for case in full.iter().filter(asked) {
        let seconds = measure(&mut criterion, &device, case, &pool)?;
        write(line(case, seconds, copied))?;
    }
    Ok(right)
}

/// The description of the machine.
fn about(device: &Device, copied: f64) -> Value {
    let (info, arch) = (device.info(), device.arch().to_string());
    let (processors, l2, kernels) = (device.processors(), device.l2(), device.origin());
    json!({ "machine": {
        "device": info.name, "arch": arch, "processors": processors, "l2": l2, "memory": info.memory,
        "kernels": kernels, "copy": copied,
    }})
}

fn line(case: &Case, seconds: f64, copied: f64) -> Value {
    let (bytes, flops) = match case.work {
        Work::Bytes(bytes) => (bytes, 0),
        Work::Flops(flops) => (0, flops),
    };
    let rate = match case.work {
        Work::Bytes(_) => format!("{:.0} % of the copy bandwidth", bytes as f64 / seconds / copied * 1e2),
        Work::Flops(_) => format!("{:.0} TFLOP/s", flops as f64 / seconds / 1e12),
    };
    let (name, shape, variant) = (case.name, &case.shape, case.variant);
    println!("{name} {shape} {variant}: {:.1} us, {rate}", seconds * 1e6);
    json!({ "name": name, "shape": shape, "variant": variant, "seconds": seconds, "bytes": bytes, "flops": flops })
}

fn criterion() -> Criterion {
    let times = [100, 500].map(Duration::from_millis);
    Criterion::default().without_plots().sample_size(SAMPLES).warm_up_time(times[0]).measurement_time(times[1])
}

/// The bytes per second that the device reads and writes when it copies a large block.
fn copy_rate(device: &Device) -> Outcome<f64> {
    let mut blocks = (0..2).map(|_| device.alloc(COPIED)).collect::<Result<Vec<_>, _>>()?;
    let [from, to] = &mut blocks[..] else { unreachable!("two blocks") };
    from.fill(0x3f)?;
    let mut rates = Vec::new();
    for _ in 0..SAMPLES + 2 {
        let mut done = Ok(());
        let seconds = device.seconds(|| done = (0..4).try_for_each(|_| to.copy(from)))?;
        done?;
        rates.push(4.0 * 2.0 * COPIED as f64 / seconds);
    }
    Ok(median(rates.split_off(2)))
}

/// Seconds per launch: the median over the samples. The launches of a sample cycle through the sets.
fn measure(criterion: &mut Criterion, device: &Device, case: &Case, pool: &Pool) -> Outcome<f64> {
    // Enough sets that a launch finds none of its data in the cache.
    let count = (4 * device.l2()).div_ceil(case.bytes()).max(2);
    let mut sets = (0..count).map(|n| Set::new(device, case, pool, n)).collect::<Result<Vec<_>, _>>()?;
    for set in &mut sets {
        set.prepare(case)?;
        set.keep(case)?;
    }
    // Enough launches that the overhead between the events is negligible.
    let few = sample(device, case, &mut sets, 2 * count)?;
    let launches = ((SAMPLE / few) as usize).clamp(count, 1 << 16);
    let (mut samples, mut fault) = (Vec::new(), Ok(()));
    let mut group = criterion.benchmark_group(case.name);
    group.throughput(match case.work {
        Work::Bytes(bytes) => Throughput::Bytes(bytes as u64),
        Work::Flops(flops) => Throughput::Elements(flops as u64),
    });
    group.bench_function(format!("{} {}", case.shape, case.variant).trim_end(), |bencher| {
        bencher.iter_custom(|iterations| {
            let seconds = sample(device, case, &mut sets, launches).unwrap_or_else(|error| {
                fault = Err(error);
                1.0
            });
            samples.push(seconds);
            Duration::from_secs_f64(seconds * iterations as f64)
        });
    });
    group.finish();
    fault?;
    // The first samples were the warm-up's.
    Ok(median(samples.split_off(samples.len().saturating_sub(SAMPLES))))
}

/// Seconds per launch, over so many launches, each on the next set.
fn sample(device: &Device, case: &Case, sets: &mut [Set], launches: usize) -> Outcome<f64> {
    sets.iter_mut().try_for_each(Set::restore)?;
    let mut done = Ok(());
    let seconds = device.seconds(|| {
        done = (0..launches).try_for_each(|i| sets[i % sets.len()].launch(case));
    })?;
    done?;
    Ok(seconds / launches as f64)
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}
