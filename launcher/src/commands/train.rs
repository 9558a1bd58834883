//! `train`: what comes before the first step, agreed on by all ranks, and then step after step.

use crate::progress::Progress;
use engine::backend::Backend;
use engine::checkpoint::{self, HuggingFace, Saved, source};
use engine::clock::{Clock, Phase};
use engine::config::{BackendKind, Config, Load, Precision};
use engine::cpu::{Cpu, cores};
use engine::data::feed::Feed;
use engine::error::{Error, Result};
use engine::mpi::{Comm, World};
use engine::report::metrics::{MetricsLog, StepRecord};
use engine::report::tensorboard::EventLog;
use engine::trainer::{Report, Trainer};
use engine::{flops, init, state};
use std::path::PathBuf;
use std::time::Instant;

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
}

const EXAMPLES: &str = "Examples:
  swallow-engine train --config configs/demo.toml
  mpirun -n 16 swallow-engine train --config run.toml --set train.steps=200 --set checkpoint.dir=runs/try
  mpirun -n 16 swallow-engine train --config run.toml --from-step 500";

pub fn run(args: Args, world: &World) -> Result<()> {
    let comm = world.comm();
    let text = comm.on_first(|| Ok(Config::load(&args.config, &args.set)?.to_toml().into_bytes()))?;
    let config = comm.agree(Config::from_resolved(&String::from_utf8_lossy(&text)))?;
    config.mesh(comm.size())?;
    match choose_backend(&config, comm)? {
        Precision::F32 => train::<Cpu<f32>>(&args, world, config, Cpu::new(threads(comm))),
        Precision::Bf16 => train::<Cpu<half::bf16>>(&args, world, config, Cpu::new(threads(comm))),
    }
}

/// The precision of the CPU backend, the only one there is so far.
fn choose_backend(config: &Config, comm: &Comm) -> Result<Precision> {
    // As if there were no device: what is asked for by name is refused by name.
    let (kind, precision) = config.backend(false)?;
    if kind == BackendKind::Cuda {
        let here = match cuda::devices() {
            Ok(devices) if !devices.is_empty() => format!("this machine has {}", devices[0].name),
            Ok(_) => "this machine has no CUDA device".to_string(),
            Err(why) => why,
        };
        return Err(Error::user(format!(
            "train.backend = \"cuda\": the CUDA backend is not built yet ({here}); use train.backend = \"cpu\""
        )));
    }
    if comm.rank() == 0 && config.train.backend.is_none() && cuda::devices().is_ok_and(|devices| !devices.is_empty()) {
        eprintln!("note: there is a CUDA device, but the CUDA backend is not built yet: this run is on the CPU");
    }
    Ok(precision)
}

fn threads(comm: &Comm) -> usize {
    let share = cores::share(comm);
    if comm.rank() == 0 && share.idle > 0 {
        eprintln!(
            "warning: {} cores of this node are used by no rank (mpirun bound the ranks to cores); \
             `mpirun --bind-to none` gives them all",
            share.idle
        );
    }
    share.threads
}

/// Prepares together, then runs; a rank that fails on the way ends all.
fn train<B: Backend>(args: &Args, world: &World, config: Config, b: B) -> Result<()> {
    let mut run = Run::prepare(args, world.comm(), config, b)?;
    if let Err(error) = run.train_on(world.comm()) {
        world.abort(&error);
    }
    Ok(())
}

/// A run under way.
struct Run<B: Backend> {
    trainer: Trainer<B>,
    /// Rank 0's.
    logs: Option<Logs>,
    ranks: usize,
    /// FLOPs a token by the formulas `model` and `full`.
    flops: (f64, f64),
}

struct Logs {
    metrics: MetricsLog,
    events: EventLog,
    progress: Progress,
}

impl<B: Backend> Run<B> {
    fn prepare(args: &Args, comm: &Comm, config: Config, b: B) -> Result<Self> {
        let feed = comm.agree(Feed::open(&config))?;
        comm.agree(check_ids(&feed, &config, comm))?;
        let mut trainer = Trainer::new(b, config, feed, comm)?;
        comm.agree(start(args, &mut trainer, comm.rank()))?;
        trainer.publish();
        let dir = trainer.config.checkpoint.dir.clone();
        let logs = if comm.rank() == 0 { open_logs(&trainer).map(Some) } else { Ok(None) };
        let logs = comm.agree(logs)?;
        if comm.rank() == 0 && trainer.step >= trainer.config.train.steps {
            eprintln!("{}: step {} of {} is done", dir.display(), trainer.step, trainer.config.train.steps);
        }
        let (m, seq) = (&trainer.config.model, trainer.config.train.seq_length);
        let flops = (flops::model_flops(m, seq), flops::full_flops(m, seq));
        Ok(Run { trainer, logs, ranks: comm.size(), flops })
    }

    fn train_on(&mut self, comm: &Comm) -> Result<()> {
        while self.trainer.step < self.trainer.config.train.steps {
            let (start, mut clock) = (Instant::now(), Clock::start(Phase::Data));
            let report = self.trainer.step(&mut clock)?;
            self.must_be_finite(&report)?;
            // The time of a step is training's: validation and checkpoint have parts of their own.
            let seconds = start.elapsed().as_secs_f64();
            let valid_loss = self.validate(&mut clock)?;
            self.save(comm, &mut clock)?;
            let record = self.record(&report, seconds, clock, valid_loss);
            if let Some(logs) = &mut self.logs {
                logs.metrics.append(&record)?;
                logs.events.append(&record)?;
                logs.progress.step(&record);
            }
        }
        if let Some(logs) = self.logs.take() {
            logs.progress.finish();
        }
        Ok(())
    }

    fn must_be_finite(&self, report: &Report) -> Result<()> {
        if report.loss.is_finite() && report.grad_norm.is_finite() {
            return Ok(());
        }
        Err(Error::run(format!(
            "step {}: loss {} and gradient norm {} are not numbers to train on; nothing was saved since the last checkpoint",
            self.trainer.step, report.loss, report.grad_norm
        )))
    }

    fn validate(&mut self, clock: &mut Clock) -> Result<Option<f64>> {
        let interval = self.trainer.config.train.eval_interval;
        if interval == 0 || !self.trainer.step.is_multiple_of(interval) {
            return Ok(None);
        }
        clock.enter(Phase::Validation);
        self.trainer.validate().map(Some)
    }

    fn save(&mut self, comm: &Comm, clock: &mut Clock) -> Result<()> {
        let (step, t) = (self.trainer.step, &self.trainer.config);
        let due = t.checkpoint.interval > 0 && step.is_multiple_of(t.checkpoint.interval);
        if !due && step != t.train.steps {
            return Ok(());
        }
        clock.enter(Phase::Checkpoint);
        let pieces = state::pieces(&self.trainer);
        checkpoint::save(&t.checkpoint.dir, comm, &state::header(&self.trainer), pieces, t.checkpoint.keep)?;
        Ok(())
    }

    fn record(&self, report: &Report, seconds: f64, clock: Clock, valid_loss: Option<f64>) -> StepRecord {
        let t = &self.trainer.config;
        let per_s = (t.train.global_batch_size * t.train.seq_length) as f64 / seconds;
        let per_rank = per_s / self.ranks as f64;
        let tflops = |flops: f64| per_rank * flops / 1e12;
        let mfu = |flops: f64| t.report.peak_tflops.map(|peak| tflops(flops) / peak);
        StepRecord {
            step: self.trainer.step,
            loss: report.loss,
            z_loss: report.z_loss,
            grad_norm: report.grad_norm,
            lr: report.lr,
            tokens: report.tokens,
            consumed_samples: self.trainer.consumed_samples(),
            step_time_s: seconds,
            tokens_per_s: per_s,
            tokens_per_s_per_rank: per_rank,
            tflops_model: tflops(self.flops.0),
            tflops_full: tflops(self.flops.1),
            mfu_model: mfu(self.flops.0),
            mfu_full: mfu(self.flops.1),
            parts: clock.stop().into_iter().map(|(phase, s)| (phase.name().to_string(), s)).collect(),
            valid_loss,
        }
    }
}

/// The vocabulary must hold every id of the data; each rank looks at its share of the files.
fn check_ids(feed: &Feed, config: &Config, comm: &Comm) -> Result<()> {
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
fn start<B: Backend>(args: &Args, trainer: &mut Trainer<B>, rank: usize) -> Result<()> {
    let dir = trainer.config.checkpoint.dir.clone();
    let saved = match args.from_step {
        Some(step) => Some(Saved::at_step(&dir, step)?),
        None => Saved::latest(&dir)?,
    };
    if let Some(saved) = saved {
        must_match(args, trainer, &saved)?;
        if rank == 0 {
            eprintln!("continuing {} after step {}", dir.display(), saved.header().position.step);
            warn_of_another_order(trainer, &saved);
        }
        return state::resume(trainer, &saved);
    }
    match trainer.config.train.load.clone() {
        Load::Random => {
            if let Some(tokenizer) = trainer.feed().tokenizer().filter(|_| rank == 0) {
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
fn warn_of_another_order<B: Backend>(trainer: &Trainer<B>, saved: &Saved) {
    let before = Config::from_resolved(&saved.header().config).and_then(|config| Feed::open(&config));
    let (Ok(before), now) = (before, trainer.feed()) else {
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
fn must_match<B: Backend>(args: &Args, trainer: &Trainer<B>, saved: &Saved) -> Result<()> {
    let header = saved.header();
    let mut differences = checkpoint::compare(&header.identity, &state::header(trainer).identity);
    if args.accept_data_change {
        differences.retain(|d| !d.key.starts_with("data."));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = differences.iter().map(|d| format!("  {d}")).collect();
    Err(Error::user(format!(
        "{}: this run was started with other settings:\n{}\nput them back, or choose another checkpoint.dir \
         (--accept-data-change allows those of data)",
        trainer.config.checkpoint.dir.display(),
        lines.join("\n")
    )))
}

fn open_logs<B: Backend>(trainer: &Trainer<B>) -> Result<Logs> {
    let (config, dir) = (&trainer.config, &trainer.config.checkpoint.dir);
    std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let path = dir.join("config.toml");
    std::fs::write(&path, config.to_toml()).map_err(|e| Error::io(&path, e))?;
    Ok(Logs {
        metrics: MetricsLog::open(&dir.join("metrics.jsonl"))?,
        events: EventLog::create(dir, trainer.step + 1)?,
        progress: Progress::new(config.train.steps, trainer.step + 1),
    })
}
