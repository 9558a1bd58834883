//! `plan`: what a run would take of a cluster before it is queued: memory to the byte, the time of a step and where it
//! goes, and how long all of it lasts.

mod search;
mod site;
mod told;

use super::mesh;
use super::topology::must_hold;
use crate::output::or_broken_pipe;
use crate::progress::Count;
use cuda::backend::CudaScratch;
use engine::backend::{Elem, Scratch};
use engine::config::{BackendKind, Cluster, Config, Precision, Ranks, ranks_used};
use engine::cpu::{CpuScratch, Float};
use engine::error::{Error, Result};
use engine::layout::mesh::Mesh;
use engine::layout::placement::split_warning;
use half::bf16;
use plan::dry_run::refusal;
use plan::search::Room;
use plan::{Figures, Forecast, Measured, best_change, replay::Costs};
use report::trace;
use search::Asked;
use site::{Site, must_be_like, room};
use std::io::Write;
use std::path::{Path, PathBuf};
use told::Told;

/// What a run would take of a cluster: memory, time, efficiency
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The run's configuration (TOML); its data need not be there
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Replace one key, such as parallel.tensor=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The nodes that it is to run on (configs/clusters)
    #[arg(long, value_name = "FILE", required_unless_present = "calibrate")]
    cluster: Option<PathBuf>,
    /// This machine's CPU instead, by the figures that benches/figures.sh has timed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cluster", "search"])]
    calibrate: Option<PathBuf>,
    /// GPUs [default: parallel.ranks, else as few as the layout can have]
    #[arg(long, value_name = "N", value_parser = super::ranks_flag())]
    ranks: Option<usize>,
    /// Rank the layouts, micro-batches, recomputations and virtual stages of as many GPUs
    #[arg(long, conflicts_with = "trace")]
    search: bool,
    /// Write the simulated step as https://ui.perfetto.dev opens it
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
  benches/figures.sh figures.json 2 configs/demo.toml parallel.pipeline=2
  swallow-engine plan --config configs/demo.toml --set parallel.pipeline=2 --calibrate figures.json";

pub fn run(args: Args) -> Result<()> {
    let config = Config::read_for(args.ranks.map_or(Ranks::Its, Ranks::AtHand), &args.config, &args.set)?;
    let ranks = args.ranks.or(config.parallel.ranks).unwrap_or(ranks_used(&config.parallel));
    let mesh = mesh(&config, args.ranks, ranks)?;
    match (&args.calibrate, &args.cluster) {
        (Some(path), _) => of_machine(&args, path, &config, &mesh),
        (None, Some(path)) => of_cluster(&args, path, &config, &mesh),
        (None, None) => unreachable!("one of the two is required"),
    }
}

fn of_cluster(args: &Args, path: &Path, config: &Config, mesh: &Mesh) -> Result<()> {
    let cluster = Cluster::load(path)?;
    must_hold(&cluster, mesh.ranks(), path)?;
    super::train::must_fit_cuda(config)?;
    on_gpus(config)?;
    let nodes: Vec<usize> = (0..mesh.ranks()).map(|rank| rank / cluster.gpus_per_node).collect();
    if let Some(warning) = split_warning(mesh, &nodes, cluster.gpus_per_node) {
        eprintln!("warning: {warning}");
    }
    let scratch = CudaScratch::of(&cluster.device);
    if args.search {
        let asked = Asked { config, mesh, cluster: &cluster, scratch };
        return search::run(&asked, path, args.json);
    }
    let forecast =
        counted(mesh, cluster.reached.is_some(), |one| Forecast::of::<bf16>(config, mesh, &cluster, scratch, one))?;
    let room = |reached| Room {
        ranks: mesh.ranks(),
        cluster: &cluster,
        reached,
        limit: room(&cluster, mesh),
        scratch: &scratch,
    };
    let change = cluster.reached.as_ref().map(|reached| best_change::<bf16, _>(config, mesh, &room(reached)));
    let (site, path, change) = (Site::of_cluster(&cluster, mesh), path.to_path_buf(), change.transpose()?);
    tell::<bf16>(args, &Told { site, path, config, mesh, forecast, change }, &scratch)
}

fn of_machine(args: &Args, path: &Path, config: &Config, mesh: &Mesh) -> Result<()> {
    let figures = Figures::read(path)?;
    must_be_like(&figures, config, mesh, path)?;
    match config.train.precision.unwrap_or(Precision::F32) {
        Precision::F32 => on_cores::<f32>(args, path, &figures, config, mesh),
        Precision::Bf16 => on_cores::<bf16>(args, path, &figures, config, mesh),
    }
}

fn on_cores<A: Float>(args: &Args, path: &Path, figures: &Figures, config: &Config, mesh: &Mesh) -> Result<()> {
    let (measured, scratch) = (Measured::new(figures, size_of::<A>()), CpuScratch::<A>::new(figures.threads));
    let forecast = counted(mesh, true, |one| {
        Forecast::by::<A>(config, mesh, Some(&measured as &dyn Costs), scratch.clone(), one)
    })?;
    let (site, path) = (Site::of_machine(figures, config, mesh), path.to_path_buf());
    // Of other layouts no op has been timed.
    tell::<A>(args, &Told { site, path, config, mesh, forecast, change: None }, &scratch)
}

/// With a bar: many micro-batches take their time.
fn counted<T>(mesh: &Mesh, costs_are_known: bool, forecast: impl FnOnce(&(dyn Fn() + Sync)) -> T) -> T {
    let count = Count::new("rehearsing stages", Forecast::rehearsals(mesh, costs_are_known) as u64);
    let forecast = forecast(&|| count.one());
    count.finish();
    forecast
}

/// Prints what there is to tell, and refuses what does not fit.
fn tell<A: Elem>(args: &Args, told: &Told, scratch: &(impl Scratch + Clone + 'static)) -> Result<()> {
    if let Some(path) = &args.trace {
        let step = told.forecast.step.as_ref().ok_or_else(|| unknown(&told.path, "--trace"))?;
        trace::write_all(path, &step.tracks())?;
    }
    let text = if args.json { format!("{:#}\n", told.json()) } else { told.text(&args.config) };
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))?;
    let (needed, limit) = (told.forecast.bytes(), told.site.room);
    match needed > limit {
        true => Err(refusal::<A>(told.config, told.mesh, (needed, limit), scratch)?),
        false => Ok(()),
    }
}

/// A cluster's ranks are GPUs, which compute in bf16.
fn on_gpus(config: &Config) -> Result<()> {
    let said = match (config.train.backend, config.train.precision) {
        (Some(BackendKind::Cpu), _) => "train.backend = \"cpu\"",
        (_, Some(Precision::F32)) => "train.precision = \"f32\"",
        _ => return Ok(()),
    };
    Err(Error::user(format!(
        "{said}: plan tells of runs on GPUs, in bf16; leave the key out (train --dry-run tells of any)"
    )))
}

/// What `flag` cannot do without knowing what is reached.
fn unknown(path: &Path, flag: &str) -> Error {
    Error::user(format!("--cluster {}: {flag} needs its [reached] table, by which times are told", path.display()))
}
