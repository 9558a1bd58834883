//! `train`: everything up to the first step, on which all ranks agree, and then the training loop (`run.rs`).

use crate::agreement::from_first;
use crate::ideal::Ideal;
use crate::memory::{self, Taken};
use crate::output::say;
use crate::progress::Waiting;
use crate::resume::{self, Resume};
use crate::run::{self, Beginning, Run, Stop};
use crate::run_dir::RunDir;
use crate::status::RunStatus;
use crate::stops::StopRequests;
use crate::task_scores::Tasks;
use crate::watchdog::{Watchdog, Watched, patience};
use crate::{agreement, gpu, under_mpirun};
use data::feed::Feed;
use engine::backend::Backend;
use engine::checkpoint::{self, IfDamaged};
use engine::config::{BackendKind, Config, Load, Precision, Ranks};
use engine::cpu::{Cpu, Float, cores};
use engine::error::{Error, Result, counted};
use engine::layout::mesh::Mesh;
use engine::layout::placement::{fullest, reorder_ranks, split_warning};
use engine::layout::rank_layout::{RankLayout, layers_of_chunks};
use engine::layout::split;
use engine::mpi::nodes;
use engine::mpi::{Comm, World, host};
use engine::stage::groups::Groups;
use engine::time::Phase;
use engine::train::clock::Clock;
use engine::train::copies;
use engine::train::trainer::Trainer;
use half::bf16;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// Train a model, or continue a run that has a checkpoint
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Configuration of the run (TOML)
    #[arg(long)]
    config: PathBuf,
    /// Override one key of the configuration, such as train.steps=100
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Continue from the checkpoint of this step instead of the newest one
    #[arg(long, value_name = "STEP")]
    from_step: Option<u64>,
    /// Go back to the step of --from-step although the run has done so before
    #[arg(long, requires = "from_step")]
    again: bool,
    /// Continue from the newest checkpoint that is not damaged, where the newest one is
    #[arg(long, conflicts_with = "from_step")]
    fall_back: bool,
    /// Continue although [data] has changed
    #[arg(long)]
    accept_data_change: bool,
    /// Trace this step into <checkpoint.dir>/traces/, for https://ui.perfetto.dev
    #[arg(long, value_name = "STEP")]
    trace: Option<u64>,
    /// Print the memory and communication of every rank without training; needs no data, ranks or devices
    #[arg(long, conflicts_with_all = ["from_step", "fall_back", "accept_data_change", "trace"])]
    pub dry_run: bool,
    /// Number of ranks of the dry run [default: mpirun's, else parallel.ranks, else the fewest of the layout]
    #[arg(long, value_name = "N", requires = "dry_run", value_parser = super::ranks_flag())]
    ranks: Option<usize>,
    /// Cluster file with the GPUs of the dry run (configs/clusters) [default: A100]
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    cluster: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  swallow-engine train --config configs/demo.toml
  mpirun -n 16 swallow-engine train --config run.toml \\
      --set train.steps=200 --set checkpoint.dir=runs/try
  mpirun -n 16 swallow-engine train --config run.toml --from-step 500
  mpirun -n 16 swallow-engine train --config run.toml --trace 20
  swallow-engine train --config configs/swallow-70b.toml --dry-run --ranks 512
  swallow-engine train --config configs/swallow-7b.toml --dry-run \\
      --cluster configs/clusters/abci-a100-40.toml";

pub fn run(args: Args, world: &mut World, stops: StopRequests) -> Result<()> {
    let comm = world.comm();
    let load = || Config::load_for(Ranks::AtHand(comm.size()), &args.config, &args.set);
    let text = comm.on_first(|| Ok(load()?.to_toml().into_bytes()))?;
    let config = comm.agree(Config::from_resolved(&String::from_utf8_lossy(&text)))?;
    let mesh = config.mesh(comm.size())?;
    if comm.rank() == 0 {
        print_layout(&config, &mesh);
    }
    assign_ranks(world, &mesh);
    let comm = world.comm();
    let status = Arc::new(RunStatus::new(&config.checkpoint.dir, comm.rank(), config.train.steps));
    stops.report_to(status.clone());
    status.end_on_panic();
    let watchdog = watch(&config, mesh.clone(), &status, comm)?;
    let chosen = choose_backend(&config, comm)?;
    let ideal = comm.agree(if comm.rank() == 0 { Ideal::of(&config, &mesh, chosen.1) } else { Ok(None) })?;
    let mut feed = open_data(&config, comm)?;
    learn_bytes(&mut feed, &config, comm);
    let dir = lock_run_dir(&config, comm)?;
    status.locked();
    let ranks = Rc::new(comm.split(0, comm.rank()));
    let start = Start { args: &args, world, ranks, config, feed, dir, ideal, stops, status: status.clone(), watchdog };
    start.on_backend(chosen).inspect_err(|error| status.refused(&error.to_string()))
}

impl Start<'_> {
    fn on_backend(self, chosen: (BackendKind, Precision)) -> Result<()> {
        match chosen {
            (BackendKind::Cpu, Precision::F32) => self.on_cpu::<f32>(),
            (BackendKind::Cpu, Precision::Bf16) => self.on_cpu::<bf16>(),
            (BackendKind::Cuda, _) => self.on_cuda(),
        }
    }
}

/// `train --dry-run`, which does not start MPI.
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
    /// Rank 0's lock of the run's directory.
    dir: Option<RunDir>,
    /// The ideal step time, on rank 0 if `report.cluster` is set.
    ideal: Option<Ideal>,
    stops: StopRequests,
    status: Arc<RunStatus>,
    watchdog: Watchdog,
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

    /// The groups are made first, so that NCCL takes its memory before the engine reserves the rest.
    fn on_cuda(self) -> Result<()> {
        let (rank_layout, b) = (self.rank_layout()?, gpu::open(&self.config, &self.ranks)?);
        self.watchdog.also_watch(Box::new(b.probe()));
        let groups = Groups::new(&b, &self.config, &rank_layout);
        let planned = gpu::allocate_arena(&b, &self.config, &rank_layout, &self.ranks)?;
        self.train(b, groups, rank_layout, planned)
    }

    /// Loads the state with all ranks in agreement, then trains; a failure that only this rank knows of ends all ranks.
    fn train<B: Backend>(self, b: B, groups: Groups<B>, rank_layout: RankLayout, planned: Taken) -> Result<()> {
        let Start { args, world, config, feed, dir, ideal, stops, status, .. } = self;
        let (comm, mut trainer) = (world.comm(), Trainer::with_groups(b, groups, config, rank_layout));
        let (from_step, accept_data_change) = (args.from_step, args.accept_data_change);
        let if_damaged = if args.fall_back { IfDamaged::FallBack } else { IfDamaged::Refuse };
        let retry = run::retry(&trainer.config, &run::writer(&trainer.rank_layout));
        let how = Resume { from_step, again: args.again, if_damaged, accept_data_change, retry, run_dir: dir.as_ref() };
        resume::load(&how, &mut trainer, &feed, comm)?;
        comm.agree(trace_is_to_come(args.trace, trainer.step, trainer.config.train.steps))?;
        trainer.cast_main_params();
        copies::must_be_equal(&mut trainer, comm)?;
        if trainer.step >= trainer.config.train.steps {
            if comm.rank() == 0 {
                let dir = trainer.config.checkpoint.dir.display();
                say!("{dir}: {}", nothing_left(trainer.step, trainer.config.train.steps));
            }
            run::finish_export(&trainer.config, trainer.step, comm)?;
            status.nothing_left(trainer.step);
            return Ok(());
        }
        let tasks = Tasks::open(&trainer.config, &trainer.rank_layout, comm)?;
        let clock = Clock::of(&trainer.b, world.recorder(), Phase::Checkpoint);
        let with = Beginning { feed, tasks, planned, dir, ideal, trace: args.trace, stops, status: &status };
        match Run::begin(trainer, with, comm)?.finish(comm, clock) {
            Err(Stop::ThisRank(error)) if comm.size() > 1 => world.abort(&error, |what| status.failed_alone(what)),
            Err(Stop::ThisRank(error) | Stop::AllRanks(error)) => {
                let standing = status.failed(&error.to_string());
                Err(error.map(|what| what + &standing))
            }
            Ok(line) => {
                if comm.rank() == 0 {
                    say!("{line}");
                }
                Ok(())
            }
        }
    }
}

/// Prints what the user may want to know about the layout before the first step.
fn print_layout(config: &Config, mesh: &Mesh) {
    let ranks = mesh.ranks();
    if let Some(meant) = config.parallel.ranks.filter(|&meant| meant != ranks) {
        say!("warning: parallel.ranks = {meant}, but this run has {}", counted(ranks, "rank"));
    }
    if let Some(dir) = config.model.hf.as_ref().filter(|dir| !dir.join("config.json").is_file()) {
        let (dir, run) = (dir.display(), config.checkpoint.dir.display());
        say!("note: model.hf = {dir}: there is no config.json in this directory; using the model of {run}");
    }
    for note in config.notes() {
        say!("note: {note}");
    }
    let stages = config.parallel.pipeline;
    if stages > 1 {
        let costs = split::Costs::of(&config.model, config.train.seq_length);
        say!("{}", split::describe(&layers_of_chunks(config), stages, &costs));
    }
}

/// Assigns the ranks of the mesh to the processes, according to the nodes that these run on.
fn assign_ranks(world: &mut World, mesh: &Mesh) {
    let started: Vec<usize> = nodes::slots(world.comm()).iter().map(|slot| slot.node).collect();
    let order = reorder_ranks(&started, mesh);
    let nodes: Vec<usize> = order.iter().map(|&process| started[process]).collect();
    if let Some(warning) = split_warning(mesh, &nodes, fullest(&nodes)).filter(|_| world.comm().rank() == 0) {
        say!("warning: {warning}");
    }
    world.reorder(&order);
}

/// Starts the watchdog of all ranks. Collective.
fn watch(config: &Config, mesh: Mesh, status: &Arc<RunStatus>, comm: &Comm) -> Result<Watchdog> {
    let limit = patience::of(config, comm)?;
    let rank_layout = RankLayout::new(config, mesh, comm.rank());
    let (places, dir) = (nodes::slots(comm), config.checkpoint.dir.clone());
    Watchdog::start(Watched { places, rank_layout, limit, dir, status: status.clone() }, comm)
}

/// Opens the data on all ranks, which must see the same files, and checks all token ids. Collective.
pub fn open_data(config: &Config, comm: &Comm) -> Result<Feed> {
    let feed = comm.agree(Feed::open(config))?;
    agreement::on_data(&feed, comm)?;
    comm.agree(check_tokenizers(&feed, config))?;
    let waiting = (comm.rank() == 0).then(|| Waiting::new("checking the token ids of the data"));
    comm.agree(check_ids(&feed, config, comm))?;
    drop(waiting);
    Ok(feed)
}

/// All ranks learn from rank 0 which bytes the ids of each validation set stand for, since the tokenizers may be on its
/// node alone. Collective.
fn learn_bytes(feed: &mut Feed, config: &Config, comm: &Comm) {
    let model = match &config.train.load {
        Load::HuggingFace(folder) => Some(folder.clone()),
        Load::Random => None,
    };
    let folders: Vec<PathBuf> = model.into_iter().chain([config.checkpoint.dir.join("source")]).collect();
    let mine = if comm.rank() == 0 { feed.read_piece_bytes(&folders) } else { Vec::new() };
    feed.set_piece_bytes(from_first(comm, &mine));
}

/// Rank 0 locks the run's directory and removes what dead processes left there. Collective.
fn lock_run_dir(config: &Config, comm: &Comm) -> Result<Option<RunDir>> {
    let lock = || {
        let dir = RunDir::lock(&config.checkpoint.dir, "checkpoint.dir")?;
        let retry = run::retry(config, &format!("rank 0 on {}", host())).of("cleaning the run directory");
        retry.run(|| dir.clean())?;
        dir.lock.announce()?;
        Ok(Some(dir))
    };
    comm.agree(if comm.rank() == 0 { lock() } else { Ok(None) })
}

/// CUDA where there are devices, unless the configuration chooses another backend.
pub fn choose_backend(config: &Config, comm: &Comm) -> Result<(BackendKind, Precision)> {
    let asked = config.train.backend;
    let mut has_device = asked != Some(BackendKind::Cpu) && gpu::are_present(comm)?;
    // A device that the user did not ask for is used only where it is suitable.
    if has_device
        && asked.is_none()
        && let Some(why) = gpu::unsuitable(config, comm)
    {
        if comm.rank() == 0 {
            say!("note: this run uses the CPU although there is a CUDA device: {why}");
        }
        has_device = false;
    }
    let chosen = config.backend(has_device)?;
    if chosen.0 == BackendKind::Cuda {
        gpu::must_fit_kernels(config)?;
    }
    if chosen.0 == BackendKind::Cuda && !has_device {
        return Err(Error::user(format!("train.backend = \"cuda\": {}", cuda::device::Error::NoDriver)));
    }
    Ok(chosen)
}

fn threads(comm: &Comm) -> usize {
    let share = cores::share(comm);
    if comm.rank() == 0 && share.idle > 0 && under_mpirun() {
        say!(
            "warning: no rank uses {} cores of this node, because mpirun bound the ranks to cores; \
             `mpirun --bind-to none` lets them use all",
            share.idle
        );
    }
    share.threads
}

/// The step to trace must be one that this run takes.
fn trace_is_to_come(asked: Option<u64>, done: u64, steps: u64) -> Result<()> {
    let Some(step) = asked.filter(|step| !(done + 1..=steps).contains(step)) else { return Ok(()) };
    let first = done + 1;
    let why = match done >= steps {
        true => nothing_left(done, steps),
        false if first == steps => format!("this run takes step {steps} only; name that one"),
        false => format!("this run takes the steps {first} to {steps}; name one of them"),
    };
    Err(Error::user(format!("--trace {step}: {why}")))
}

/// The message about a run that has taken all its steps, or more.
fn nothing_left(done: u64, steps: u64) -> String {
    let more = "raise it to train on";
    match done > steps {
        true => format!("step {done} is done, and train.steps = {steps}; {more}"),
        false => format!("step {done} is done, which is the last one of train.steps; {more}"),
    }
}

/// A new run refuses sources of mixed tokenizers. A run that resumes only warns of them ([`resume::load`]).
fn check_tokenizers(feed: &Feed, config: &Config) -> Result<()> {
    match checkpoint::steps(&config.checkpoint.dir)?.is_empty() {
        true => feed.check_tokenizers(&config.train.load),
        false => Ok(()),
    }
}

/// The vocabulary must contain every id of the data; each rank checks its share of the files.
fn check_ids(feed: &Feed, config: &Config, comm: &Comm) -> Result<()> {
    let Some(worst) = feed.largest_id(comm.rank(), comm.size())? else {
        return Ok(());
    };
    if (worst.id as usize) < config.model.vocab_size {
        return Ok(());
    }
    Err(Error::user(format!(
        "model.vocab_size = {}: {} contains id {} (document {}); the vocabulary must be at least {}, \
         unless the data was made with the wrong tokenizer",
        config.model.vocab_size,
        worst.file.display(),
        worst.id,
        worst.document,
        worst.id + 1
    )))
}
