//! A run under way: step after step, what is written of each, and how it ends.

use crate::memory::{self, Taken};
use crate::progress::Progress;
use crate::survey::Survey;
use data::feed::Feed;
use data::loader::Loader;
use engine::backend::{Backend, Detail, Elem, Span};
use engine::checkpoint::Saver;
use engine::error::{Error, Result};
use engine::layout::rank_layout::RankLayout;
use engine::model::flops::Formula;
use engine::mpi::{Comm, host};
use engine::time::Phase;
use engine::train::clock::{Clock, Lap};
use engine::train::state;
use engine::train::trainer::{PendingStep, StepStats, Trainer};
use report::peak;
use report::records::machine::Machine;
use report::records::metrics::{MetricsLog, StepRecord};
use report::records::settings::settings;
use report::records::tensorboard::EventLog;
use report::records::trace::{self, Busy};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a run ended before its last step.
pub enum Stop {
    /// All ranks have the same error.
    Together(Error),
    /// Only this rank does.
    Alone(Error),
}

/// A run under way.
pub struct Run<B: Backend> {
    trainer: Trainer<B>,
    feed: Arc<Feed>,
    loader: Loader,
    saver: Saver,
    /// What this rank is going to take of its memory.
    planned: Taken,
    /// Rank 0's.
    logs: Option<Logs>,
    ranks: usize,
    /// What a step's time depends on.
    settings: String,
    /// FLOPs a token by the formulas `model` and `full`.
    flops: [f64; 2],
    /// The step that is traced, if any.
    trace: Option<u64>,
    survey: Survey,
    /// TFLOPS of a rank's device at the most; unknown for what is not in the table.
    peak: Option<f64>,
}

/// A step whose line is not yet written.
struct Unwritten<B: Backend> {
    under_way: PendingStep<B>,
    /// From its first op to its last.
    span: [B::Event; 2],
    lap: Lap<B>,
}

struct Logs {
    /// Locked while the run lasts: a second run on the directory would tear the files of this one.
    _lock: File,
    metrics: MetricsLog,
    events: EventLog,
    progress: Progress,
    said_slow: bool,
}

impl<B: Backend> Run<B> {
    /// Claims the run's directory and opens its logs. All ranks call it together.
    pub fn begin(trainer: Trainer<B>, feed: Feed, planned: Taken, trace: Option<u64>, comm: &Comm) -> Result<Self> {
        let feed = Arc::new(feed);
        let loader = Loader::start(feed.clone(), trainer.requests());
        let logs = if comm.rank() == 0 { Logs::open(&trainer).map(Some) } else { Ok(None) };
        let logs = comm.agree(logs)?;
        let survey = comm.agree(survey(&trainer, comm))?;
        let (m, seq) = (&trainer.config.model, trainer.config.train.seq_length);
        let recompute = trainer.config.train.recompute;
        let flops = [Formula::Model, Formula::Full].map(|formula| formula.per_token(m, seq, recompute));
        let peak = trainer.config.report.peak_tflops.or_else(|| peak::bf16_tflops(&trainer.b.device()));
        let t = &trainer.config;
        let settings = settings(t, &trainer.rank_layout.mesh);
        let saver = Saver::new(&t.checkpoint.dir, t.checkpoint.keep, writer(&trainer.rank_layout));
        Ok(Run {
            trainer,
            feed,
            loader,
            saver,
            planned,
            logs,
            ranks: comm.size(),
            settings,
            flops,
            trace,
            survey,
            peak,
        })
    }

    /// To the last step and the last checkpoint.
    pub fn finish(mut self, comm: &Comm, clock: Clock<B>) -> std::result::Result<(), Stop> {
        let ended = self.steps(comm, clock);
        if let Err(Stop::Alone(_)) = ended
            && comm.size() > 1
        {
            // What is under way would be waited for when it is dropped, from ranks that may never come.
            std::mem::forget(self);
            return ended;
        }
        // Also of a run that failed: the step of the save under way was a good one.
        let saved = self.saver.finish(comm).map_err(Stop::Together);
        if let Some(logs) = self.logs {
            logs.progress.finish();
        }
        ended.and(saved)?;
        let used = Taken { blocks: self.trainer.b.usage(), copy: self.saver.copied() };
        memory::write(&self.trainer.config.checkpoint.dir, comm, self.planned, used).map_err(Stop::Together)
    }

    /// Step after step. A step is in the metrics before it is in a checkpoint, so that no step is
    /// missing from them; the time of its own line and of a save's copy is in the line of the step after it, the
    /// save's writing in none. Where the backend runs ahead, a step's line is written while the next is under way,
    /// unless something waits for it.
    fn steps(&mut self, comm: &Comm, mut clock: Clock<B>) -> std::result::Result<(), Stop> {
        let mut before = None;
        while self.trainer.step < self.trainer.config.train.steps {
            clock.step(self.trainer.step + 1);
            clock.enter(&self.trainer.b, Phase::Data);
            let detail = self.detail(self.trainer.step + 1);
            if let Some(detail) = detail {
                self.trainer.b.begin_trace(detail);
            }
            let (start, host) = (self.trainer.b.record_event(), Instant::now());
            let under_way = self.trainer.start(&self.loader, &mut clock).map_err(Stop::Alone)?;
            let (span, host) = ([start, self.trainer.b.record_event()], host.elapsed());
            before.take().map_or(Ok(()), |step| self.write_late(step))?;
            let spans = detail.map(|_| self.trainer.b.end_trace());
            if let Some(spans) = spans.as_ref().filter(|_| self.trace == Some(self.trainer.step)) {
                self.write_trace(spans, host).map_err(Stop::Alone)?;
            }
            if B::RUNS_AHEAD && spans.is_none() && !self.validates() && !self.saves() {
                let lap = clock.lap(&self.trainer.b, Phase::Report);
                before = Some(Unwritten { under_way, span, lap });
            } else {
                let (step, report) = (under_way.step, self.report(under_way)?);
                let valid_loss = self.validate(&mut clock).map_err(Stop::Alone)?;
                let lap = clock.lap(&self.trainer.b, Phase::Report);
                self.write(step, &report, &span, &lap, valid_loss)?;
                if self.survey.takes(step) {
                    self.sample(comm, step, &span, &lap, &spans.unwrap_or_default())?;
                }
            }
            clock.enter(&self.trainer.b, Phase::Checkpoint);
            self.save(comm).map_err(Stop::Together)?;
        }
        before.map_or(Ok(()), |step| self.write_late(step))
    }

    /// What is to be remembered of a step.
    fn detail(&self, step: u64) -> Option<Detail> {
        if self.trace == Some(step) {
            return Some(Detail::Ops);
        }
        self.survey.takes(step).then_some(Detail::Parts)
    }

    /// All ranks call it together.
    fn sample(
        &mut self,
        comm: &Comm,
        step: u64,
        span: &[B::Event; 2],
        lap: &Lap<B>,
        spans: &[Span],
    ) -> std::result::Result<(), Stop> {
        let (seconds, phases) = (self.seconds(span), self.phases(lap));
        let warnings = self.survey.take(comm, step, seconds, phases, spans).map_err(Stop::Alone)?;
        if let Some(logs) = &self.logs {
            warnings.iter().for_each(|warning| logs.progress.warn(warning));
        }
        Ok(())
    }

    fn seconds(&self, [start, end]: &[B::Event; 2]) -> f64 {
        self.trainer.b.elapsed(start, end)
    }

    fn phases(&self, lap: &Lap<B>) -> BTreeMap<String, f64> {
        lap.seconds(&self.trainer.b).map(|(phase, s)| (phase.key().to_string(), s)).into()
    }

    /// `host`: in which the host had enqueued the step.
    fn write_trace(&self, spans: &[Span], host: Duration) -> Result<()> {
        let t = &self.trainer;
        let path = trace::write(&t.config.checkpoint.dir, t.step, t.rank_layout.rank, spans)?;
        if let Some(logs) = &self.logs {
            let idle = Busy::of(spans).map_or(String::new(), |busy| {
                let (ms, percent) = (1e3 * busy.step, 100.0 * busy.idle());
                let host = 1e3 * host.as_secs_f64();
                format!("; nothing computed in {percent:.1} % of its {ms:.1} ms on this rank, and the host had enqueued it in {host:.1} ms")
            });
            logs.progress.say(&format!("the trace of step {} is in {}{idle}", t.step, path.display()));
        }
        Ok(())
    }

    fn write_late(&mut self, step: Unwritten<B>) -> std::result::Result<(), Stop> {
        let Unwritten { under_way, span, lap } = step;
        let (step, report) = (under_way.step, self.report(under_way)?);
        self.write(step, &report, &span, &lap, None)
    }

    /// What a step showed, which must be numbers.
    fn report(&self, under_way: PendingStep<B>) -> std::result::Result<StepStats, Stop> {
        let step = under_way.step;
        let report = self.trainer.finish(under_way).map_err(Stop::Alone)?;
        if report.loss.is_finite() && report.grad_norm.is_finite() {
            return Ok(report);
        }
        Err(Stop::Together(Error::run(format!(
            "step {step}: loss {} and gradient norm {} are not numbers to train on; nothing was saved since the last checkpoint",
            report.loss, report.grad_norm
        ))))
    }

    /// Whether a validation follows the step just enqueued.
    fn validates(&self) -> bool {
        let interval = self.trainer.config.train.eval_interval;
        interval > 0 && self.trainer.step.is_multiple_of(interval)
    }

    /// Whether a checkpoint follows it.
    fn saves(&self) -> bool {
        state::is_saved(&self.trainer.config, self.trainer.step)
    }

    fn validate(&mut self, clock: &mut Clock<B>) -> Result<Option<f64>> {
        if !self.validates() {
            return Ok(None);
        }
        clock.enter(&self.trainer.b, Phase::Validation);
        self.trainer.validate(&self.loader).map(Some)
    }

    fn save(&mut self, comm: &Comm) -> Result<()> {
        self.saver.poll(comm)?;
        if !self.saves() {
            return Ok(());
        }
        let (step, interval) = (self.trainer.step, self.trainer.config.checkpoint.interval);
        if state::is_due(&self.trainer.config, step)
            && self.saver.is_under_way()
            && let Some(logs) = &mut self.logs
        {
            logs.say_slow(step, interval);
        }
        let header = state::header(&self.trainer, self.feed.fingerprint());
        self.saver.begin(comm, &header, state::pieces(&self.trainer))
    }

    fn write(
        &mut self,
        step: u64,
        report: &StepStats,
        span: &[B::Event; 2],
        lap: &Lap<B>,
        valid_loss: Option<f64>,
    ) -> std::result::Result<(), Stop> {
        if self.logs.is_none() {
            return Ok(());
        }
        let record = self.record(step, report, self.seconds(span), self.phases(lap), valid_loss);
        self.logs.as_mut().map_or(Ok(()), |logs| logs.append(&record)).map_err(Stop::Alone)
    }

    fn record(
        &self,
        step: u64,
        report: &StepStats,
        seconds: f64,
        parts: BTreeMap<String, f64>,
        valid_loss: Option<f64>,
    ) -> StepRecord {
        let t = &self.trainer.config;
        let per_s = (t.train.global_batch_size * t.train.seq_length) as f64 / seconds;
        let per_rank = per_s / self.ranks as f64;
        let tflops = |flops: f64| per_rank * flops / 1e12;
        let mfu = |flops: f64| self.peak.map(|peak| tflops(flops) / peak);
        StepRecord {
            step,
            loss: report.loss,
            z_loss: report.z_loss,
            grad_norm: report.grad_norm,
            lr: report.lr,
            tokens: report.tokens,
            consumed_samples: step * t.train.global_batch_size as u64,
            step_time_s: seconds,
            tokens_per_s: per_s,
            tokens_per_s_per_rank: per_rank,
            tflops_model: tflops(self.flops[0]),
            tflops_full: tflops(self.flops[1]),
            mfu_model: mfu(self.flops[0]),
            mfu_full: mfu(self.flops[1]),
            settings: self.settings.clone(),
            parts,
            valid_loss,
        }
    }
}

impl Logs {
    fn open<B: Backend>(trainer: &Trainer<B>) -> Result<Logs> {
        let (config, dir) = (&trainer.config, &trainer.config.checkpoint.dir);
        let lock = lock(dir)?;
        let (path, partial) = (dir.join("config.toml"), dir.join("config.toml.partial"));
        std::fs::write(&partial, config.to_toml()).map_err(|e| Error::io(&partial, e))?;
        std::fs::rename(&partial, &path).map_err(|e| Error::io(&path, e))?;
        Ok(Logs {
            _lock: lock,
            metrics: MetricsLog::open(&dir.join("metrics.jsonl"))?,
            events: EventLog::create(dir, trainer.step + 1)?,
            progress: Progress::new(config.train.steps, trainer.step + 1),
            said_slow: false,
        })
    }

    /// Once a run.
    fn say_slow(&mut self, step: u64, interval: u64) {
        if !std::mem::replace(&mut self.said_slow, true) {
            self.progress.warn(&format!(
                "step {step}: the checkpoint before is not yet on the disk, training waits for it; \
                 the disk is slower than checkpoint.interval = {interval}"
            ));
        }
    }

    fn append(&mut self, record: &StepRecord) -> Result<()> {
        self.metrics.append(record)?;
        self.events.append(record)?;
        self.progress.step(record);
        Ok(())
    }
}

/// With what the run runs on written down.
fn survey<B: Backend>(trainer: &Trainer<B>, comm: &Comm) -> Result<Survey> {
    let (t, mesh) = (&trainer.config, &trainer.rank_layout.mesh);
    let hosts = comm.all_gather_bytes(host().as_bytes());
    let hosts: Vec<String> = hosts.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    if comm.rank() == 0 {
        let machine = Machine {
            version: env!("CARGO_PKG_VERSION").into(),
            device: trainer.b.device(),
            precision: <B::Act as Elem>::NAME.to_lowercase(),
            hosts: hosts.clone(),
        };
        machine.write(&t.checkpoint.dir.join("machine.json"))?;
    }
    Survey::new(t, mesh, hosts, comm.rank())
}

/// What a checkpoint says of who wrote a file.
fn writer(rank_layout: &RankLayout) -> String {
    let RankLayout { rank, tp, stage, dp, .. } = rank_layout;
    format!("rank {rank} (tp {}, pp {stage}, dp {}) on {}", tp.0, dp.0, host())
}

/// The lock goes with the process, however it ends.
fn lock(dir: &Path) -> Result<File> {
    let key = |e| Error::user(format!("checkpoint.dir = {}: {e}; name a directory that can be written", dir.display()));
    std::fs::create_dir_all(dir).map_err(key)?;
    let file = File::create(dir.join("lock")).map_err(key)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::user(format!(
            "checkpoint.dir = {}: another run is using this directory; wait for it, or name another",
            dir.display()
        ))),
        // Some network file systems have no locks.
        Err(TryLockError::Error(_)) | Ok(()) => Ok(file),
    }
}
