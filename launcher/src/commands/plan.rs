//! `plan`: what a run would take of a cluster before it is queued: memory to the byte, the time of a step and where it
//! goes, and how long all of it lasts.

use super::mesh;
use super::plan_search::{self, Asked};
use super::tokenizer::or_broken_pipe;
use super::topology::{aligned, must_hold, table};
use crate::gpu::reserve;
use cuda::backend::CudaScratch;
use engine::config::{Axis, BackendKind, Cluster, Config, Named, Precision, Ranks, ranks_used};
use engine::error::{Error, Result, counted};
use engine::flops::Formula;
use engine::mesh::Mesh;
use engine::plan::{Forecast, Share, Speed, Step, bottleneck};
use engine::rehearsal::{Held, Rehearsal, refusal};
use engine::report::trace;
use half::bf16;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

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
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
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
  swallow-engine plan --config run.toml --cluster configs/clusters/dgx-h100.toml --ranks 64 --trace step.json";

pub const GIB: f64 = (1u64 << 30) as f64;

pub fn run(args: Args) -> Result<()> {
    let config = Config::read_for(args.ranks.map_or(Ranks::Its, Ranks::AtHand), &args.config, &args.set)?;
    let ranks = args.ranks.or(config.parallel.ranks).unwrap_or(ranks_used(&config.parallel));
    let mesh = mesh(&config, args.ranks, ranks)?;
    let cluster = Cluster::load(&args.cluster)?;
    must_hold(&cluster, mesh.ranks(), &args.cluster)?;
    super::train::must_fit_cuda(&config)?;
    on_gpus(&config)?;
    let scratch = CudaScratch::of(&cluster.device);
    if args.search {
        let asked = Asked { config: &config, mesh: &mesh, cluster: &cluster, scratch };
        return plan_search::run(&asked, &args.cluster, args.json);
    }
    let forecast = Forecast::of::<bf16>(&config, &mesh, &cluster, scratch)?;
    if let Some(path) = &args.trace {
        let step = forecast.step.as_ref().ok_or_else(|| unknown(&args.cluster, "--trace"))?;
        trace::write_all(path, &step.tracks())?;
    }
    let told = Told { args: &args, config: &config, mesh: &mesh, cluster: &cluster, forecast: &forecast };
    let text = if args.json { format!("{:#}\n", told.json()) } else { told.text() };
    or_broken_pipe(std::io::stdout().write_all(text.as_bytes()))?;
    let (needed, limit) = (forecast.bytes(), room(&cluster, &mesh));
    match needed > limit {
        true => Err(refusal::<bf16>(&config, &mesh, (needed, limit), &scratch)?),
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
pub fn unknown(path: &Path, flag: &str) -> Error {
    Error::user(format!("--cluster {}: {flag} needs its [reached] table, by which times are told", path.display()))
}

/// Bytes of a GPU that a run may take; the rest is for CUDA and NCCL.
pub fn room(cluster: &Cluster, mesh: &Mesh) -> usize {
    ((cluster.memory_gib * GIB) as usize).saturating_sub(reserve(mesh.ranks()))
}

/// What there is to tell.
struct Told<'a> {
    args: &'a Args,
    config: &'a Config,
    mesh: &'a Mesh,
    cluster: &'a Cluster,
    forecast: &'a Forecast,
}

impl Told<'_> {
    fn text(&self) -> String {
        let mut parts = vec![self.head(), self.memory()];
        match &self.forecast.step {
            Some(step) => {
                let limits = format!("{}\n", bottleneck(self.config, self.mesh, step));
                parts.extend([time(step), self.speed(step), limits]);
            }
            None => parts.push(format!(
                "{}: no [reached] table, so nobody knows what kernels and links get of their peaks: times are not told\n",
                self.args.cluster.display()
            )),
        }
        parts.join("\n")
    }

    fn head(&self) -> String {
        let (t, cluster, ranks) = (&self.config.train, self.cluster, self.mesh.ranks());
        let [tp, pp, dp] = [Axis::Tensor, Axis::Pipeline, Axis::Data].map(|axis| self.mesh.size(axis));
        let nodes = counted(ranks.div_ceil(cluster.gpus_per_node), "node");
        let (config, software) = (self.args.config.display(), &cluster.software.name);
        let n_mbs = t.global_batch_size / (t.micro_batch_size * dp);
        format!(
            "{config} by {software} on {} ({}): {ranks} GPUs of {nodes}, tensor {tp} x pipeline {pp} x data {dp}, \
             {n_mbs} micro-batches of {} x {} tokens a step, recompute {}\n",
            cluster.name,
            cluster.device,
            t.micro_batch_size,
            t.seq_length,
            t.recompute.name(),
        )
    }

    fn memory(&self) -> String {
        let (ranks, there) = (&self.forecast.memory, room(self.cluster, self.mesh) as f64 / GIB);
        let names = uses(&ranks[0]).map(|(name, _)| name);
        let mut table = table(&[&["GiB a GPU, stage"], &names[..], &["together"]].concat());
        for (stage, rank) in ranks.iter().enumerate() {
            let bytes = uses(rank).map(|(_, bytes)| bytes).into_iter().chain([rank.usage.reserved]);
            let cells = bytes.map(|bytes| format!("{:.2}", bytes as f64 / GIB));
            table.add_row([stage.to_string()].into_iter().chain(cells));
        }
        let most = self.forecast.bytes() as f64 / GIB;
        let left = match there - most {
            left if left >= 0.0 => format!("{left:.2} GiB are left"),
            missing => format!("{:.2} GiB are missing", -missing),
        };
        let all = self.cluster.memory_gib;
        format!(
            "{}\nthe most is {most:.2} of {there:.2} GiB, CUDA and NCCL having their part of {all:.2}; {left}\n",
            aligned(table, 1)
        )
    }

    fn speed(&self, step: &Step) -> String {
        let (speed, peak) = (Speed::of(self.config, self.mesh, step.seconds), self.cluster.peak_tflops);
        let mut table = table(&["formula", "TFLOPS a GPU", "% of the peak"]);
        for (name, formula) in Formula::NAMES {
            let tflops = speed.tflops(self.config, *formula);
            table.add_row([name.to_string(), format!("{tflops:.1}"), format!("{:.1}", 100.0 * tflops / peak)]);
        }
        let Speed { tokens_per_s_per_rank: each, days, rank_hours } = speed;
        let (all, steps) = (each * self.mesh.ranks() as f64, self.config.train.steps);
        format!(
            "{each:.0} tokens/s a GPU, {all:.0} together; {days:.1} days and {rank_hours:.0} GPU-hours for {steps} steps\n{}\n",
            aligned(table, 1)
        )
    }

    fn json(&self) -> Value {
        let (mesh, cluster) = (self.mesh, self.cluster);
        let memory = |rank: &Rehearsal| {
            let uses: Map<_, _> = uses(rank).iter().map(|(name, bytes)| (name.to_string(), json!(bytes))).collect();
            json!({ "bytes": rank.usage.reserved, "uses": uses })
        };
        json!({
            "ranks": mesh.ranks(),
            "tensor": mesh.size(Axis::Tensor),
            "pipeline": mesh.size(Axis::Pipeline),
            "data": mesh.size(Axis::Data),
            "cluster": cluster.name,
            "software": cluster.software.name,
            "memory_gib": cluster.memory_gib,
            "stages": self.forecast.memory.iter().map(memory).collect::<Vec<_>>(),
            "step": self.forecast.step.as_ref().map(|step| self.step_json(step)),
        })
    }

    fn step_json(&self, step: &Step) -> Value {
        let speed = Speed::of(self.config, self.mesh, step.seconds);
        let shares: Map<_, _> =
            step.shares.iter().map(|(share, seconds)| (share.name().to_string(), json!(seconds))).collect();
        let formula = |(name, formula): &(&str, Formula)| {
            let tflops = speed.tflops(self.config, *formula);
            (name.to_string(), json!({ "tflops": tflops, "mfu": tflops / self.cluster.peak_tflops }))
        };
        json!({
            "seconds": step.seconds,
            "shares": shares,
            "tokens_per_s_per_gpu": speed.tokens_per_s_per_rank,
            "days": speed.days,
            "gpu_hours": speed.rank_hours,
            "formulas": Formula::NAMES.iter().map(formula).collect::<Map<_, _>>(),
            "bottleneck": bottleneck(self.config, self.mesh, step),
        })
    }
}

/// What a rank's bytes are for.
fn uses(rank: &Rehearsal) -> [(&'static str, usize); 8] {
    let Held { weights, gradients, optimizer } = rank.held;
    [
        ("weights", weights),
        ("gradients", gradients),
        ("optimizer", optimizer),
        ("activations", rank.kept()),
        ("logits", rank.peak.logits),
        ("workspace", rank.peak.workspace),
        ("communication", rank.peak.communication),
        ("between blocks", rank.usage.reserved - rank.usage.peak),
    ]
}

fn time(step: &Step) -> String {
    let mut table = table(&["a step, mean of the stages", "s", "%"]);
    let mut row = |name: &str, seconds: f64| {
        let percent = 100.0 * seconds / step.seconds;
        table.add_row([name.to_string(), format!("{seconds:.3}"), format!("{percent:.1}")]);
    };
    let shares = Share::ALL.iter().map(|share| (share, step.shares[share]));
    shares.filter(|(_, seconds)| *seconds > 0.0).for_each(|(share, seconds)| row(share.name(), seconds));
    row("together", step.seconds);
    format!("{}\n", aligned(table, 1))
}
