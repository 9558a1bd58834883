//! Measures every op and call of a configuration's step, on all of its ranks at once, and writes the profile that
//! `swallow-engine plan --calibrate` reads. `benches/figures.sh` starts it under mpirun.
//!
//! Earlier measurements with the same numbers of ranks and threads stay in the file, so that it can hold several
//! layouts.

mod calls;
mod experts;
mod ops;

use engine::backend::{Backend, Op};
use engine::config::{Config, Precision, Ranks};
use engine::cpu::{Cpu, CpuScratch, Float, cores};
use engine::dry::{Keep, Log, LogEntry};
use engine::error::{Error, Result};
use engine::layout::rank_layout::RankLayout;
use engine::mpi::{Comm, World, host};
use half::bf16;
use plan::dry_run::run_rank;
use plan::profile::{OpTime, Profile};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

const USAGE: &str = "usage: figures OUT.json CONFIG.toml [KEY=VALUE...]";

fn main() -> ExitCode {
    // `cargo bench` passes this flag.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [out, config, set @ ..] = &args[..] else {
        println!("{USAGE}; benches/figures.sh starts it");
        return ExitCode::SUCCESS;
    };
    match run(&PathBuf::from(out), &PathBuf::from(config), set) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}

fn run(out: &Path, config: &Path, set: &[String]) -> Result<()> {
    let world = World::start()?;
    let ranks = world.comm().size();
    let config = world.comm().agree(Config::read_for(Ranks::AtHand(ranks), config, set))?;
    match config.train.precision.unwrap_or(Precision::F32) {
        Precision::F32 => on::<f32>(&world, &config, out),
        Precision::Bf16 => on::<bf16>(&world, &config, out),
    }
}

fn on<A: Float>(world: &World, config: &Config, out: &Path) -> Result<()> {
    let comm = world.comm();
    let (ranks, threads) = (Rc::new(comm.split(0, comm.rank())), cores::share(comm).threads);
    let rank_layout = RankLayout::new(config, config.mesh(comm.size())?, comm.rank());
    let scratch = CpuScratch::<A>::new(threads);
    let log = run_rank::<A>(config, &rank_layout.mesh, rank_layout.rank, scratch, Keep::Ops, 1)?.log;
    let b = Cpu::<A>::of(ranks, threads);
    let all: BTreeSet<(Op, [usize; 3])> = log.events.iter().filter_map(op).collect();
    let mine = ops::time(&b, config, &rank_layout, all, comm);
    let calls = calls::time(&b, &rank_layout, &log, comm);
    let ops = mean(comm, mine);
    if comm.rank() > 0 {
        return Ok(());
    }
    let profile = Profile {
        host: host(),
        device: b.device(),
        precision: <A as engine::backend::Elem>::NAME.to_lowercase(),
        ranks: comm.size(),
        threads,
        memory_gib: memory_gib(),
        ops,
        calls,
    };
    write(out, profile)
}

fn op(event: &LogEntry) -> Option<(Op, [usize; 3])> {
    match event {
        LogEntry::Op { op, sizes } => Some((*op, *sizes)),
        _ => None,
    }
}

/// The mean over the ranks that run an op.
fn mean(comm: &Comm, mine: Vec<OpTime>) -> Vec<OpTime> {
    let all = comm.all_gather_bytes(&serde_json::to_vec(&mine).expect("text and numbers"));
    let mut seconds: BTreeMap<(String, [usize; 3]), Vec<f64>> = BTreeMap::new();
    for rank in &all {
        let times: Vec<OpTime> = serde_json::from_slice(rank).expect("a rank wrote it above");
        times.into_iter().for_each(|f| seconds.entry((f.op, f.sizes)).or_default().push(f.seconds));
    }
    let one =
        |((op, sizes), of): (_, Vec<f64>)| OpTime { op, sizes, seconds: of.iter().sum::<f64>() / of.len() as f64 };
    seconds.into_iter().map(one).collect()
}

/// The median of an odd number of values.
fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn memory_gib() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.strip_prefix("MemTotal:").and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    total.unwrap_or_default() / (1 << 20) as f64
}

fn write(out: &Path, profile: Profile) -> Result<()> {
    let machine = |p: &Profile| (p.host.clone(), p.device.clone(), p.precision.clone(), p.ranks, p.threads);
    let same = |before: &Profile| machine(before) == machine(&profile);
    let before = if out.exists() { Some(Profile::read(out)?).filter(same) } else { None };
    let profile = before.map_or(profile.clone(), |before| profile.after(before));
    let text = serde_json::to_string_pretty(&profile).expect("text and numbers") + "\n";
    std::fs::write(out, text).map_err(|e| Error::io(out, e))?;
    println!("{} has {} ops and {} calls", out.display(), profile.ops.len(), profile.calls.len());
    Ok(())
}

/// The different calls of a log.
fn kinds(log: &Log) -> Vec<calls::Kindred> {
    let starts = log.events.iter().filter_map(|event| match event {
        LogEntry::Start(call) if call.members.len() > 1 => Some(calls::Kindred::of(call)),
        _ => None,
    });
    starts.collect::<BTreeSet<_>>().into_iter().collect()
}
