//! `plan`: memory, step time and duration of a run on a cluster, before it is queued.

mod machine;
mod search;
mod summary;

use super::mesh;
use super::topology::must_hold;
use crate::ideal;
use crate::output::{or_broken_pipe, say};
use crate::progress::Count;
use cuda::backend::CudaScratch;
use engine::backend::{Elem, Scratch};
use engine::config::{BackendKind, Cluster, Config, Precision, Ranks, ranks_used};
use engine::cpu::{CpuScratch, Float};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use engine::layout::placement::split_warning;
use half::bf16;
use machine::{Machine, alone, must_cover, must_leave_processors, must_stand_alone, room};
use plan::dry_run::refusal;
use plan::search::SearchSpace;
use plan::{CostModel, DeviceRates, Forecast, Profile, ProfiledCosts, best_change};
use report::records::trace;
use std::io::Write;
use std::path::{Path, PathBuf};
use summary::Summary;

/// Predict memory, step time and efficiency of a run on a cluster
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Configuration of the run (TOML); its data need not exist
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Replace one key, such as parallel.tensor=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Cluster file with the nodes to run on (configs/clusters)
    #[arg(long, value_name = "FILE", required_unless_present = "calibrate")]
    cluster: Option<PathBuf>,
    /// Use what was measured: the profile of this machine's CPU by benches/figures.sh, in place of a cluster; or a
    /// device's rates.json by tests/gpu.sh, in place of the cluster file's rates, or alone for one device
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Number of GPUs [default: parallel.ranks, else the least that the layout needs]
    #[arg(long, value_name = "N", value_parser = super::ranks_flag())]
    ranks: Option<usize>,
    /// Find the fastest layouts, micro-batch sizes, recomputations and virtual stages on as many GPUs
    #[arg(long, conflicts_with = "trace")]
    search: bool,
    /// Rows of the most loaded rank that shares experts, as a multiple of those of even routing
    /// [default: parallel.expert_imbalance, 1.0]
    #[arg(long, value_name = "FACTOR")]
    imbalance: Option<f64>,
    /// Write the simulated step as a trace for https://ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  swallow-engine plan --config configs/swallow-70b.toml --cluster configs/clusters/abci-a100-40.toml
  swallow-engine plan --config configs/swallow-70b.toml --cluster configs/clusters/abci-a100-40.toml --search
  swallow-engine plan --config run.toml --cluster configs/clusters/dgx-h100.toml --ranks 64 --trace step.json
  swallow-engine plan --config configs/qwen3-30b-a3b.toml --cluster configs/clusters/dgx-h100.toml --imbalance 1.3
  benches/figures.sh figures.json 2 configs/demo.toml parallel.pipeline=2
  swallow-engine plan --config configs/demo.toml --set parallel.pipeline=2 --calibrate figures.json
  swallow-engine plan --config configs/bench/wide-8b.toml --calibrate target/gpu/results/rates.json
  swallow-engine plan --config run.toml --cluster configs/clusters/dgx-h100.toml --calibrate rates.json";

pub fn run(args: Args) -> Result<()> {
    let imbalance = args.imbalance.map(|factor| format!("parallel.expert_imbalance={factor:?}"));
    let set: Vec<String> = args.set.iter().cloned().chain(imbalance).collect();
    let config = Config::read_for(args.ranks.map_or(Ranks::Its, Ranks::AtHand), &args.config, &set)?;
    ideal::cluster(&config)?;
    let ranks = args.ranks.or(config.parallel.ranks).unwrap_or(ranks_used(&config.parallel));
    let mesh = mesh(&config, args.ranks, ranks)?;
    let cluster = args.cluster.as_ref().map(|path| Ok((Cluster::load(path)?, path.as_path()))).transpose()?;
    let rates = args.calibrate.as_ref().map(|path| DeviceRates::read(path)).transpose()?.flatten();
    match (cluster, &args.calibrate, rates) {
        (Some((cluster, path)), Some(file), Some(rates)) => {
            on_cluster(&args, rates.on(cluster, file)?, path, &config, &mesh)
        }
        (None, Some(file), Some(rates)) => on_cluster(&args, alone(&rates, file, &mesh)?, file, &config, &mesh),
        (cluster, Some(file), None) => {
            must_stand_alone(file, cluster.is_some(), args.search)?;
            by_profile(&args, file, &config, &mesh)
        }
        (Some((cluster, path)), None, _) => on_cluster(&args, cluster, path, &config, &mesh),
        (None, None, _) => unreachable!("one of the two is required"),
    }
}

/// `path`: the file that names the cluster in messages.
fn on_cluster(args: &Args, cluster: Cluster, path: &Path, config: &Config, mesh: &Mesh) -> Result<()> {
    must_hold(&cluster, mesh.ranks(), path)?;
    must_leave_processors(&cluster, config, mesh)?;
    crate::gpu::must_fit_kernels(config)?;
    on_gpus(config)?;
    let nodes: Vec<usize> = (0..mesh.ranks()).map(|rank| rank / cluster.gpus_per_node).collect();
    if let Some(warning) = split_warning(mesh, &nodes, cluster.gpus_per_node) {
        say!("warning: {warning}");
    }
    let scratch = CudaScratch::of(&cluster.device);
    let space = cluster.achieved.as_ref().map(|achieved| SearchSpace {
        ranks: mesh.ranks(),
        cluster: &cluster,
        achieved,
        limit: room(&cluster, mesh),
        scratch: &scratch,
    });
    if args.search {
        let space = space.ok_or_else(|| needs_rates(path, "--search"))?;
        return search::run(config, mesh, &space, args.json);
    }
    let forecast = counted(mesh, space.is_some(), |done| Forecast::of::<bf16>(config, mesh, &cluster, &scratch, done))?;
    let change = space.map(|space| best_change::<bf16, _>(config, mesh, &space)).transpose()?;
    let (machine, path) = (Machine::of_cluster(&cluster, mesh), path.to_path_buf());
    print::<bf16>(args, &Summary { machine, path, config, mesh, forecast, change }, &scratch)
}

fn by_profile(args: &Args, path: &Path, config: &Config, mesh: &Mesh) -> Result<()> {
    let profile = Profile::read(path)?;
    must_cover(&profile, config, mesh, path)?;
    match config.train.precision.unwrap_or(Precision::F32) {
        Precision::F32 => on_cores::<f32>(args, path, &profile, config, mesh),
        Precision::Bf16 => on_cores::<bf16>(args, path, &profile, config, mesh),
    }
}

fn on_cores<A: Float>(args: &Args, path: &Path, profile: &Profile, config: &Config, mesh: &Mesh) -> Result<()> {
    let (costs, scratch) = (ProfiledCosts::new(profile, size_of::<A>()), CpuScratch::<A>::new(profile.threads));
    let forecast =
        counted(mesh, true, |done| Forecast::by::<A>(config, mesh, Some(&costs as &dyn CostModel), &scratch, done))?;
    let (machine, path) = (Machine::of_profile(profile, config, mesh), path.to_path_buf());
    // The profile has no ops of other layouts.
    print::<A>(args, &Summary { machine, path, config, mesh, forecast, change: None }, &scratch)
}

/// Shows a progress bar: steps with many micro-batches take a while.
fn counted<T>(mesh: &Mesh, with_time: bool, forecast: impl FnOnce(&(dyn Fn() + Sync)) -> T) -> T {
    let count = Count::new("dry runs", Forecast::dry_runs(mesh, with_time) as u64);
    let forecast = forecast(&|| count.one());
    count.finish();
    forecast
}

/// Prints the summary, then refuses a run that does not fit.
fn print<A: Elem>(args: &Args, summary: &Summary, scratch: &(impl Scratch + Clone + 'static)) -> Result<()> {
    if let Some(path) = &args.trace {
        let step = summary.forecast.step.as_ref().ok_or_else(|| needs_rates(&summary.path, "--trace"))?;
        trace::write_all(path, &step.tracks())?;
    }
    let text = if args.json { format!("{:#}\n", summary.json()) } else { summary.text(&args.config) };
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))?;
    let (needed, limit) = (summary.forecast.bytes(), summary.machine.room);
    match needed > limit {
        true => Err(refusal::<A>(summary.config, summary.mesh, (needed, limit), scratch)?),
        false => Ok(()),
    }
}

/// The ranks of a cluster are GPUs, which compute in bf16.
fn on_gpus(config: &Config) -> Result<()> {
    let key = match (config.train.backend, config.train.precision) {
        (Some(BackendKind::Cpu), _) => "train.backend = \"cpu\"",
        (_, Some(Precision::F32)) => "train.precision = \"f32\"",
        _ => return Ok(()),
    };
    Err(Error::user(format!(
        "{key}: plan --cluster is for GPUs in bf16; leave the key out, or use train --dry-run for memory alone"
    )))
}

/// The refusal of a flag that needs the rates which the cluster file does not have.
fn needs_rates(path: &Path, flag: &str) -> Error {
    Error::user(format!(
        "--cluster {}: {flag} needs its [reached] table, from which step times are computed",
        path.display()
    ))
}
