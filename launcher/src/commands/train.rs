//! `train`: what comes before the first step, agreed on by all ranks, and then step after step.

use crate::gpu;
use crate::memory::{self, Taken};
use crate::run::{Run, Stop};
use crate::under_mpirun;
use cuda::limits::Shape;
use data::feed::Feed;
use engine::backend::Backend;
use engine::checkpoint::{self, HuggingFace, Saved, source};
use engine::config::{BackendKind, Config, Load, Precision, Ranks};
use engine::cpu::{Cpu, Float, cores};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::placement::{fullest, reorder_ranks, split_warning};
use engine::layout::rank_layout::{RankLayout, layers_of_chunks};
use engine::layout::split;
use engine::model::init;
use engine::mpi::nodes;
use engine::mpi::{Comm, World};
use engine::stage::groups::Groups;
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::state;
use engine::train::trainer::Trainer;
use half::bf16;
use std::path::PathBuf;
use std::rc::Rc;

/// Train, or continue a run that has a checkpoint
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The run's configuration (TOML)
    #[arg(long)]
    config: PathBuf,
    /// Replace one key, such as train.steps=100
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue from this checkpoint instead of the newest
    #[arg(long, value_name = "STEP")]
    from_step: Option<u64>,
    /// Continue although [data] has changed
    #[arg(long)]
    accept_data_change: bool,
    /// Trace this step: <checkpoint.dir>/traces/, to be opened in https://ui.perfetto.dev
    #[arg(long, value_name = "STEP")]
    trace: Option<u64>,
    /// Show what each rank would hold and send, and train nothing: no data, ranks or devices are needed
    #[arg(long, conflicts_with_all = ["from_step", "accept_data_change", "trace"])]
    pub dry_run: bool,
    /// Ranks of the dry run [default: mpirun's, else parallel.ranks, else as few as the layout can have]
    #[arg(long, value_name = "N", requires = "dry_run", value_parser = super::ranks_flag())]
    ranks: Option<usize>,
    /// The GPUs that the dry run is for (configs/clusters) [default: an A100's]
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    cluster: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  swallow-engine train --config configs/demo.toml
  mpirun -n 16 swallow-engine train --config run.toml --set train.steps=200 --set checkpoint.dir=runs/try
  mpirun -n 16 swallow-engine train --config run.toml --from-step 500
  mpirun -n 16 swallow-engine train --config run.toml --trace 20
  swallow-engine train --config configs/swallow-70b.toml --dry-run --ranks 512
  swallow-engine train --config configs/swallow-7b.toml --dry-run --cluster configs/clusters/abci-a100-40.toml";

pub fn run(args: Args, world: &mut World) -> Result<()> {
    let comm = world.comm();
    let load = || Config::load_for(Ranks::AtHand(comm.size()), &args.config, &args.set);
    let text = comm.on_first(|| Ok(load()?.to_toml().into_bytes()))?;
    let config = comm.agree(Config::from_resolved(&String::from_utf8_lossy(&text)))?;
    let mesh = config.mesh(comm.size())?;
    if comm.rank() == 0 {
        say_layout(&config, &mesh);
    }
    sit(world, &mesh);
    let comm = world.comm();
    let chosen = choose_backend(&config, comm)?;
    let feed = comm.agree(Feed::open(&config))?;
    comm.agree(check_ids(&feed, &config, comm))?;
    let ranks = Rc::new(comm.split(0, comm.rank()));
    let start = Start { args: &args, world, ranks, config, feed };
    match chosen {
        (BackendKind::Cpu, Precision::F32) => start.on_cpu::<f32>(),
        (BackendKind::Cpu, Precision::Bf16) => start.on_cpu::<bf16>(),
        (BackendKind::Cuda, _) => start.on_cuda(),
    }
}

/// Without MPI.
pub fn dry_run(args: Args) -> Result<()> {
    super::dry_run::run(&args.config, &args.set, args.ranks, args.cluster.as_deref())
}

/// A run that all ranks agree on, before it has a backend.
struct Start<'a> {
    args: &'a Args,
    world: &'a World,
    /// All ranks in the mesh's order.
    ranks: Rc<Comm>,
    config: Config,
    feed: Feed,
}

impl Start<'_> {
    fn rank_layout(&self) -> Result<RankLayout> {
        Ok(RankLayout::new(&self.config, self.config.mesh(self.ranks.size())?, self.ranks.rank()))
    }

    fn on_cpu<A: Float>(self) -> Result<()> {
        let (rank_layout, threads) = (self.rank_layout()?, threads(self.world.comm()));
        let planned = memory::plan::<A>(&self.config, &rank_layout.mesh, &self.ranks, threads)?;
        let b = Cpu::<A>::of(self.ranks.clone(), threads);
        let groups = Groups::new(&b, &self.config, &rank_layout);
        self.train(b, groups, rank_layout, planned)
    }

    /// The groups come before the slab: NCCL takes its memory first.
    fn on_cuda(self) -> Result<()> {
        let (rank_layout, b) = (self.rank_layout()?, gpu::open(&self.ranks)?);
        let groups = Groups::new(&b, &self.config, &rank_layout);
        let planned = gpu::settle(&b, &self.config, &rank_layout, &self.ranks)?;
        self.train(b, groups, rank_layout, planned)
    }

    /// Prepares together, then runs; a failure that only this rank knows of ends all.
    fn train<B: Backend>(self, b: B, groups: Groups<B>, rank_layout: RankLayout, planned: Taken) -> Result<()> {
        let Start { args, world, config, feed, .. } = self;
        let (comm, mut trainer) = (world.comm(), Trainer::of(b, groups, config, rank_layout));
        comm.agree(load(args, &mut trainer, &feed, comm.rank()))?;
        comm.agree(trace_is_to_come(args.trace, trainer.step, trainer.config.train.steps))?;
        trainer.cast_main_params();
        if trainer.step >= trainer.config.train.steps {
            if comm.rank() == 0 {
                let dir = trainer.config.checkpoint.dir.display();
                eprintln!("{dir}: {}", nothing_left(trainer.step, trainer.config.train.steps));
            }
            return Ok(());
        }
        let clock = Clock::of(&trainer.b, world.whereabouts(), Phase::Checkpoint);
        match Run::begin(trainer, feed, planned, args.trace, comm)?.finish(comm, clock) {
            Err(Stop::Alone(error)) if comm.size() > 1 => world.abort(&error),
            Err(Stop::Alone(error) | Stop::Together(error)) => Err(error),
            Ok(()) => Ok(()),
        }
    }
}

/// What the user may want to know before the first step.
fn say_layout(config: &Config, mesh: &Mesh) {
    let ranks = mesh.ranks();
    if let Some(meant) = config.parallel.ranks.filter(|&meant| meant != ranks) {
        eprintln!("warning: parallel.ranks = {meant}: this run has {}", counted(ranks, "rank"));
    }
    let stages = config.parallel.pipeline;
    if stages > 1 {
        let costs = split::Costs::of(&config.model, config.train.seq_length);
        eprintln!("{}", split::describe(&layers_of_chunks(config), stages, &costs));
    }
}

/// Gives the processes their ranks of the mesh, by the nodes that they are on.
fn sit(world: &mut World, mesh: &Mesh) {
    let started: Vec<usize> = nodes::seats(world.comm()).iter().map(|seat| seat.node).collect();
    let order = reorder_ranks(&started, mesh);
    let nodes: Vec<usize> = order.iter().map(|&process| started[process]).collect();
    if let Some(warning) = split_warning(mesh, &nodes, fullest(&nodes)).filter(|_| world.comm().rank() == 0) {
        eprintln!("warning: {warning}");
    }
    world.reorder(&order);
}

/// CUDA where there are devices, unless the configuration says otherwise.
fn choose_backend(config: &Config, comm: &Comm) -> Result<(BackendKind, Precision)> {
    let asked = config.train.backend;
    let mut there = asked != Some(BackendKind::Cpu) && gpu::are_there(comm)?;
    // A device that nobody asked for is taken only where it will do.
    if there
        && asked.is_none()
        && let Some(why) = gpu::unfit(config, comm)
    {
        if comm.rank() == 0 {
            eprintln!("note: this run is on the CPU, although there is a CUDA device: {why}");
        }
        there = false;
    }
    let chosen = config.backend(there)?;
    if chosen.0 == BackendKind::Cuda {
        must_fit_cuda(config)?;
    }
    if chosen.0 == BackendKind::Cuda && !there {
        return Err(Error::user(format!("train.backend = \"cuda\": {}", cuda::device::Error::NoDriver)));
    }
    Ok(chosen)
}

/// The kernels do not take every shape.
pub fn must_fit_cuda(config: &Config) -> Result<()> {
    let (head_dim, hidden_size) = (config.model.head_dim, config.model.hidden_size);
    cuda::limits::refusal(Shape { head_dim, hidden_size })
        .map_or(Ok(()), |why| Err(Error::user(format!("{why}; choose another shape, or train.backend = \"cpu\""))))
}

fn threads(comm: &Comm) -> usize {
    let share = cores::share(comm);
    if comm.rank() == 0 && share.idle > 0 && under_mpirun() {
        eprintln!(
            "warning: {} cores of this node are used by no rank (mpirun bound the ranks to cores); \
             `mpirun --bind-to none` gives them all",
            share.idle
        );
    }
    share.threads
}

/// Nobody should wait weeks for a trace that never comes.
fn trace_is_to_come(asked: Option<u64>, done: u64, steps: u64) -> Result<()> {
    let Some(step) = asked.filter(|step| !(done + 1..=steps).contains(step)) else { return Ok(()) };
    let first = done + 1;
    let why = match done >= steps {
        true => nothing_left(done, steps),
        false if first == steps => format!("this run takes step {steps} only; name that one"),
        false => format!("this run takes steps {first} to {steps}; name one of them"),
    };
    Err(Error::user(format!("--trace {step}: {why}")))
}

/// Of a run that has taken its steps, or more.
fn nothing_left(done: u64, steps: u64) -> String {
    let more = "raise it to train on";
    match done > steps {
        true => format!("step {done} is done, more than train.steps = {steps}; {more}"),
        false => format!("step {done} is done, the last by train.steps; {more}"),
    }
}

/// The vocabulary must hold every id of the data; each rank looks at its share of the files.
pub fn check_ids(feed: &Feed, config: &Config, comm: &Comm) -> Result<()> {
    let Some(worst) = feed.largest_id(comm.rank(), comm.size())? else {
        return Ok(());
    };
    if (worst.id as usize) < config.model.vocab_size {
        return Ok(());
    }
    Err(Error::user(format!(
        "model.vocab_size = {}: {} holds id {} (document {}); the vocabulary must be at least {}, \
         or the data was made with another tokenizer",
        config.model.vocab_size,
        worst.file.display(),
        worst.id,
        worst.document,
        worst.id + 1
    )))
}

/// The run's newest checkpoint, or the one asked for; else the weights that `train.load` names.
fn load<B: Backend>(args: &Args, trainer: &mut Trainer<B>, feed: &Feed, rank: usize) -> Result<()> {
    let dir = trainer.config.checkpoint.dir.clone();
    let saved = match args.from_step {
        Some(step) => Some(Saved::at_step(&dir, step)?),
        None => Saved::latest(&dir)?,
    };
    if let Some(saved) = saved {
        must_match(args, trainer, feed, &saved)?;
        if rank == 0 {
            eprintln!("continuing {} after step {}", dir.display(), saved.header().position.step);
            warn_of_another_order(feed, &saved);
            if let Err(mixed) = feed.check_tokenizers(&trainer.config.train.load) {
                eprintln!("warning: {mixed}");
            }
        }
        return state::resume(trainer, &saved);
    }
    feed.check_tokenizers(&trainer.config.train.load)?;
    match trainer.config.train.load.clone() {
        Load::Random => {
            if let Some(tokenizer) = feed.tokenizer().filter(|_| rank == 0) {
                source::keep_tokenizer(&tokenizer, &dir)?;
            }
            let (model, seed) = (trainer.config.model.clone(), trainer.config.train.seed);
            state::load_weights(trainer, |tensor, rect, out| {
                init::fill(&model, seed, tensor, rect, out);
                Ok(())
            })
        }
        Load::HuggingFace(from) => {
            let weights = HuggingFace::open(&from, &trainer.config.model)?;
            if rank == 0 {
                source::keep(&from, &dir)?;
            }
            state::load_weights(trainer, |tensor, rect, out| weights.read(&tensor.name, rect, out))
        }
    }
}

/// Megatron's sample order follows from the epochs that the steps need: more steps may shuffle anew.
fn warn_of_another_order(now: &Feed, saved: &Saved) {
    let before = Config::from_resolved(&saved.header().config).and_then(|config| Feed::open(&config));
    let Ok(before) = before else {
        return;
    };
    for ((key, was), (_, is)) in before.epochs().into_iter().zip(now.epochs()).filter(|(a, b)| a != b) {
        eprintln!(
            "warning: {key}: was {was}, is now {is}: the samples still to come are in another order, \
             and some are seen twice or not at all"
        );
    }
}

/// A changed model or data plan would not be the same run.
fn must_match<B: Backend>(args: &Args, trainer: &Trainer<B>, feed: &Feed, saved: &Saved) -> Result<()> {
    let header = saved.header();
    let mut differences = checkpoint::compare(&header.identity, &state::header(trainer, feed.fingerprint()).identity);
    if args.accept_data_change {
        differences.retain(|d| !d.key.starts_with("data."));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let data = differences.iter().any(|d| d.key.starts_with("data."));
    let lines: Vec<String> = differences.iter().map(|d| format!("  {d}")).collect();
    Err(Error::user(format!(
        "{}: this run was started with other settings:\n{}\nput them back, or choose another checkpoint.dir{}",
        trainer.config.checkpoint.dir.display(),
        lines.join("\n"),
        if data { " (--accept-data-change allows those of data)" } else { "" }
    )))
}
