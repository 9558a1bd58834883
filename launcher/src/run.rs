//! The training loop: the phases of a step, the records that are written about it, and the end of a run.

use crate::first_step;
use crate::history;
use crate::ideal::Ideal;
use crate::informative;
use crate::logs::{Logs, METRICS};
use crate::memory::{self, Taken};
use crate::origin;
use crate::output::to_stderr;
use crate::rank_sampler::RankSampler;
use crate::run_dir::RunDir;
use crate::status::RunStatus;
use crate::stops::{StopReason, StopRequests, TimeLimit};
use crate::task_scores::Tasks;
use crate::validation::{Evaluated, validate};
use data::feed::Feed;
use data::loader::Loader;
use engine::backend::{Backend, Detail, Elem, Judgement, Span};
use engine::checkpoint::{self, Ahead, Options, Retention, Saver, Space};
use engine::config::Config;
use engine::error::{Error, Result};
use engine::layout::rank_layout::RankLayout;
use engine::mpi::{Comm, host};
use engine::retry::Retry;
use engine::time::Phase;
use engine::train::clock::{Clock, Lap};
use engine::train::copies;
use engine::train::state;
use engine::train::trainer::{PendingStep, StepStats, Trainer};
use report::records::machine::Machine;
use report::records::trace::{self, Busy};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why a run ended before its last step.
pub enum Stop {
    /// All ranks have the same error.
    AllRanks(Error),
    /// Only this rank has it, and the others do not know.
    ThisRank(Error),
}

type Outcome<T> = std::result::Result<T, Stop>;

/// A run whose steps have begun.
pub struct Run<B: Backend> {
    trainer: Trainer<B>,
    feed: Arc<Feed>,
    loader: Loader,
    saver: Saver,
    /// The tasks of `[eval]`.
    tasks: Option<Tasks>,
    /// The memory that this rank is expected to take.
    planned: Taken,
    /// Only rank 0 has them.
    logs: Option<Logs>,
    /// The step to trace op by op, if any.
    trace: Option<u64>,
    sampler: RankSampler,
    stops: StopRequests,
    /// The limit of `train.stop_before`, by rank 0's clock.
    limit: Option<TimeLimit>,
    status: Arc<RunStatus>,
    /// The step that the run began after.
    first: u64,
    /// Whether the run begins with the weights of a model.
    loaded: bool,
    /// The step of the newest checkpoint, complete or not.
    saved: Option<u64>,
    /// The step of the last checkpoint that was announced.
    announced: Option<u64>,
    /// Steps in a row up to the last one that were skipped as spikes.
    skipped: u64,
}

/// All that a run begins with besides its trainer.
pub struct Beginning<'a> {
    pub feed: Feed,
    pub tasks: Option<Tasks>,
    /// The memory that this rank is expected to take.
    pub planned: Taken,
    /// Rank 0's lock of the run's directory.
    pub dir: Option<RunDir>,
    /// The ideal step, on rank 0 where the configuration names a cluster.
    pub ideal: Option<Ideal>,
    /// The step to trace op by op, if any.
    pub trace: Option<u64>,
    pub stops: StopRequests,
    pub status: &'a Arc<RunStatus>,
}

/// A step whose ops are enqueued.
struct Enqueued<B: Backend> {
    results: PendingStep<B>,
    /// The events before its first op and after its last.
    span: [B::Event; 2],
    /// The time that the host took to enqueue it.
    host: Duration,
}

/// A step that is not yet in the logs.
struct Unwritten<B: Backend> {
    step: Enqueued<B>,
    lap: Lap<B>,
}

impl<B: Backend> Run<B> {
    /// Opens the logs and starts loading data. Collective.
    pub fn begin(trainer: Trainer<B>, with: Beginning<'_>, comm: &Comm) -> Result<Self> {
        let Beginning { feed, tasks, planned, dir, ideal, trace, stops, status } = with;
        let (config, mesh) = (&trainer.config, &trainer.rank_layout.mesh);
        let hosts = hosts(comm);
        if comm.rank() == 0 {
            history::started(config, mesh, &hosts, trainer.step);
        }
        let writer = writer(&trainer.rank_layout);
        let retry = retry(config, &writer);
        let open =
            |dir| Logs::open(dir, config, mesh, (&trainer.b.device(), ideal), trainer.step, (retry, comm.recorder()));
        let logs = comm.agree(dir.map(open).transpose())?;
        let sampler = sampler(&trainer, hosts, comm.rank());
        let space = logs.as_ref().and_then(|logs| space(config, trainer.step, logs));
        let mut saver = saver(config, writer, space);
        saver.export_missing(comm, trainer.step)?;
        let feed = Arc::new(feed);
        let loader = comm.agree(Loader::start(feed.clone(), trainer.requests()))?;
        let limit = trainer.config.train.stop_before.filter(|_| comm.rank() == 0).map(|time| TimeLimit::new(time.0));
        let (status, first, saved) = (status.clone(), trainer.step, Some(trainer.step).filter(|&step| step > 0));
        status.begin(first, saved);
        let (saved, announced) = (saved, None);
        let loaded = comm.max(u64::from(first_step::is_of_a_model(&trainer.config, first))) > 0;
        Ok(Run {
            trainer,
            feed,
            loader,
            saver,
            tasks,
            planned,
            logs,
            trace,
            sampler,
            stops,
            limit,
            status,
            first,
            loaded,
            saved,
            announced,
            skipped: 0,
        })
    }

    /// Trains to the last step, or until the run is asked to stop, waits for the last checkpoint, and writes how the
    /// run ended into its directory. Returns the last line of the log. Collective.
    pub fn finish(mut self, comm: &Comm, clock: Clock<B>) -> Outcome<String> {
        let ended = match self.steps(comm, clock) {
            Err(Stop::ThisRank(error)) if comm.size() > 1 => {
                self.saver.abandon();
                self.logs.iter_mut().for_each(Logs::finish);
                // Dropping the run would wait for communication with ranks that may never take part.
                std::mem::forget(self);
                return Err(Stop::ThisRank(error));
            }
            ended => ended,
        };
        // A failed run finishes its last save, too: that step was good.
        let saved = self.saver.finish(comm).map_err(Stop::AllRanks);
        self.announce_save();
        let ended = ended.and_then(|stopped| saved.map(|()| stopped)).map(|stopped| self.status.ended(stopped));
        // Last, since it waits for whoever reads the log, and mpirun may be about to end this process.
        self.logs.iter_mut().for_each(Logs::finish);
        let line = ended?;
        let b = &self.trainer.b;
        let used = Taken { blocks: b.usage(), copy: self.saver.copied(), others: b.taken_by_others() };
        memory::write(&self.trainer.config.checkpoint.dir, comm, self.planned, used);
        Ok(line)
    }

    /// All steps. A step is in the metrics before it is in a checkpoint, so that the metrics have every step. The time
    /// of writing a step's line and of a save's host copy counts towards the next step; writing the save counts
    /// towards none. Where the backend runs ahead, a step's line is written while the next step runs, unless something
    /// needs its results first.
    fn steps(&mut self, comm: &Comm, mut clock: Clock<B>) -> Outcome<Option<StopReason>> {
        let (mut previous, mut stopped) = (None, None);
        while self.trainer.step < self.trainer.config.train.steps {
            stopped = self.asked_to_stop(comm)?;
            if stopped.is_some() {
                break;
            }
            clock.step(self.trainer.step + 1);
            clock.enter(&self.trainer.b, Phase::Data);
            let detail = self.detail(self.trainer.step + 1);
            let step = self.enqueue(detail, &mut clock)?;
            previous.take().map_or(Ok(()), |step| self.write_late(step, comm))?;
            let spans = detail.map(|_| self.trainer.b.end_trace());
            if B::RUNS_AHEAD && spans.is_none() && !self.validates() && !self.scores_tasks() && !self.saves() {
                let lap = clock.lap(&self.trainer.b, Phase::Report);
                previous = Some(Unwritten { step, lap });
            } else {
                self.complete(step, spans.as_deref(), comm, &mut clock)?;
            }
            clock.enter(&self.trainer.b, Phase::Checkpoint);
            self.save_if_due(comm).map_err(Stop::AllRanks)?;
        }
        previous.map_or(Ok(()), |step| self.write_late(step, comm))?;
        if stopped.is_some() && self.saved != Some(self.trainer.step) {
            clock.enter(&self.trainer.b, Phase::Checkpoint);
            self.save_to_stop(comm).map_err(Stop::AllRanks)?;
        }
        Ok(stopped)
    }

    /// Whether any rank was asked to stop, or the time is up: the same on all ranks. Collective.
    fn asked_to_stop(&mut self, comm: &Comm) -> Outcome<Option<StopReason>> {
        // A run that was signalled while it started takes one step all the same: a job that is started again each time
        // comes to its end.
        let first = self.trainer.step == self.first;
        let signal = self.stops.signal().filter(|_| !first).map(|signal| StopReason::Signal(signal, comm.rank()));
        let (elapsed, save) = (self.stops.elapsed(), self.time_of_a_save());
        let time_is_up = self.limit.as_mut().is_some_and(|limit| limit.is_near(elapsed, save));
        let mine = signal.or(time_is_up.then_some(StopReason::Time));
        let reason = StopReason::decode(comm.max(StopReason::encode(mine)));
        if let Some(reason) = reason {
            self.status.stopping(&format!("the run stops, since {}", reason.describe()));
        }
        if reason == Some(StopReason::Time) && first {
            let limit = self.trainer.config.train.stop_before.map_or(String::new(), |time| time.to_string());
            return Err(Stop::AllRanks(Error::run(format!(
                "train.stop_before = \"{limit}\": the time was up before the first step; give the job more time"
            ))));
        }
        Ok(reason)
    }

    /// How long a save begun now would take to complete, as far as one was measured; rank 0 knows.
    fn time_of_a_save(&self) -> Duration {
        let last = self.saver.completed().map_or(Duration::ZERO, |save| save.time);
        last + self.saver.saving_since().map_or(Duration::ZERO, |since| last.saturating_sub(since))
    }

    /// The detail in which a step is traced, if it is.
    fn detail(&self, step: u64) -> Option<Detail> {
        if self.trace == Some(step) {
            return Some(Detail::Ops);
        }
        self.sampler.samples(step).then_some(Detail::Parts)
    }

    fn enqueue(&mut self, detail: Option<Detail>, clock: &mut Clock<B>) -> Outcome<Enqueued<B>> {
        if let Some(detail) = detail {
            self.trainer.b.begin_trace(detail);
        }
        let (start, host) = (self.trainer.b.record_event(), Instant::now());
        let results = self.trainer.start(&self.loader, clock).map_err(Stop::ThisRank)?;
        Ok(Enqueued { results, span: [start, self.trainer.b.record_event()], host: host.elapsed() })
    }

    /// Waits for the step's results, validates where that is due, and writes everything about the step.
    fn complete(
        &mut self,
        step: Enqueued<B>,
        spans: Option<&[Span]>,
        comm: &Comm,
        clock: &mut Clock<B>,
    ) -> Outcome<()> {
        let Enqueued { results, span, host } = step;
        if let Some(spans) = spans.filter(|_| self.trace == Some(results.step)) {
            informative::warn_of_failure(self.write_trace(spans, host));
        }
        let (step, results) = (results.step, self.finite(results, comm)?);
        let evaluated = self.evaluate(comm, clock).map_err(Stop::ThisRank)?;
        let lap = clock.lap(&self.trainer.b, Phase::Report);
        self.write(step, &results, &span, &lap, evaluated)?;
        if self.sampler.samples(step) {
            self.sample(comm, step, &span, &lap, spans.unwrap_or_default());
        }
        Ok(())
    }

    fn write_late(&mut self, Unwritten { step, lap }: Unwritten<B>, comm: &Comm) -> Outcome<()> {
        let (span, step, results) = (step.span, step.results.step, self.finite(step.results, comm)?);
        self.write(step, &results, &span, &lap, Evaluated::default())
    }

    /// The results of a step; an error where they are not finite.
    fn finite(&mut self, results: PendingStep<B>, comm: &Comm) -> Outcome<StepStats> {
        let step = results.step;
        let results = self.trainer.finish(results).map_err(Stop::ThisRank)?;
        if results.judgement != Judgement::NotFinite {
            if self.loaded && step == 1 {
                first_step::judge(&self.trainer.config, &results, comm.rank() == 0).map_err(Stop::AllRanks)?;
            }
            return Ok(results);
        }
        let origin = origin::find(&mut self.trainer, &*self.feed, step, comm).map_err(Stop::ThisRank)?;
        let others = checkpoint::live_steps(&self.trainer.config.checkpoint.dir).unwrap_or_default();
        Err(Stop::AllRanks(Error::run(format!(
            "step {step}: the loss is {} and the gradient norm {}, not both finite: training has diverged{origin}; the \
             step updated nothing, and nothing was saved since the last checkpoint{}",
            results.loss,
            results.grad_norm,
            origin::earlier(&others)
        ))))
    }

    /// Adds a step to the logs.
    fn write(
        &mut self,
        step: u64,
        results: &StepStats,
        span: &[B::Event; 2],
        lap: &Lap<B>,
        evaluated: Evaluated,
    ) -> Outcome<()> {
        self.status.step(step, results.loss);
        if self.logs.is_none() {
            return self.count_skipped(step, results);
        }
        let (seconds, phases) = (self.seconds(span), self.phases(lap));
        let append = |logs: &mut Logs| logs.append(step, results, seconds, phases, evaluated);
        self.logs.as_mut().map_or(Ok(()), append).map_err(Stop::ThisRank)?;
        self.count_skipped(step, results)
    }

    /// Ends a run that skips one step after another: its loss no longer comes down to what it was.
    fn count_skipped(&mut self, step: u64, results: &StepStats) -> Outcome<()> {
        self.skipped = if results.skipped { self.skipped + 1 } else { 0 };
        let window = self.trainer.config.spike.window;
        if self.skipped < window {
            return Ok(());
        }
        Err(Stop::AllRanks(Error::run(format!(
            "step {step}: the last {window} steps were all skipped as spikes (loss {}, gradient norm {}): continue \
             from an earlier checkpoint (--from-step), with a lower optimizer.lr or without the samples of these \
             steps (spike.skip)",
            results.loss, results.grad_norm
        ))))
    }

    fn write_trace(&self, spans: &[Span], host: Duration) -> Result<()> {
        let t = &self.trainer;
        let path = trace::write(&t.config.checkpoint.dir, t.step, t.rank_layout.rank, spans)?;
        let Some(logs) = &self.logs else { return Ok(()) };
        let idle = Busy::of(spans).map_or(String::new(), |busy| {
            format!(
                "; nothing computed in {:.1} % of its {:.1} ms on this rank, and the host enqueued it in {:.1} ms",
                100.0 * busy.idle(),
                1e3 * busy.step,
                1e3 * host.as_secs_f64()
            )
        });
        logs.progress.note(&format!("the trace of step {} is in {}{idle}", t.step, path.display()));
        Ok(())
    }

    /// Gathers the breakdown of the step's time on all ranks. Collective.
    fn sample(&mut self, comm: &Comm, step: u64, span: &[B::Event; 2], lap: &Lap<B>, spans: &[Span]) {
        let (seconds, phases) = (self.seconds(span), self.phases(lap));
        let warnings = self.sampler.sample(comm, step, seconds, phases, spans);
        if let Some(logs) = &self.logs {
            warnings.iter().for_each(|warning| logs.progress.warn(warning));
        }
    }

    fn seconds(&self, [start, end]: &[B::Event; 2]) -> f64 {
        self.trainer.b.elapsed(start, end)
    }

    fn phases(&self, lap: &Lap<B>) -> BTreeMap<String, f64> {
        lap.seconds(&self.trainer.b).map(|(phase, s)| (phase.key().to_string(), s)).into()
    }

    /// Whether a validation follows the step just enqueued.
    fn validates(&self) -> bool {
        let interval = self.trainer.config.train.eval_interval;
        interval > 0 && self.trainer.step.is_multiple_of(interval)
    }

    /// Whether the tasks are scored after the step just enqueued.
    fn scores_tasks(&self) -> bool {
        self.tasks.is_some() && self.trainer.step.is_multiple_of(self.trainer.config.eval.interval)
    }

    /// Whether a checkpoint follows the step just enqueued.
    fn saves(&self) -> bool {
        state::is_saved(&self.trainer.config, self.trainer.step)
    }

    /// Validates, and scores the tasks, where that is due.
    fn evaluate(&mut self, comm: &Comm, clock: &mut Clock<B>) -> Result<Evaluated> {
        let (validates, scores_tasks) = (self.validates(), self.scores_tasks());
        if validates || scores_tasks {
            clock.enter(&self.trainer.b, Phase::Validation);
        }
        let mut evaluated = Evaluated::default();
        if validates {
            evaluated.validation = Some(validate(&mut self.trainer, &self.feed, &self.loader, comm)?);
        }
        if let Some(tasks) = self.tasks.as_ref().filter(|_| scores_tasks) {
            evaluated.tasks = tasks.score(&mut self.trainer, comm)?;
        }
        Ok(evaluated)
    }

    fn save_if_due(&mut self, comm: &Comm) -> Result<()> {
        self.saver.poll(comm)?;
        self.announce_save();
        if !self.saves() {
            return Ok(());
        }
        let (step, interval) = (self.trainer.step, self.trainer.config.checkpoint.interval);
        let is_slow = state::is_due(&self.trainer.config, step) && self.saver.must_wait(step);
        if let Some(logs) = self.logs.as_mut().filter(|_| is_slow) {
            logs.warn_of_slow_save(step, interval);
        }
        self.save(comm)
    }

    fn save_to_stop(&mut self, comm: &Comm) -> Result<()> {
        match state::saves(&self.trainer.config) {
            true => self.save(comm),
            false => Ok(()),
        }
    }

    /// Starts the checkpoint of the last step, once the token files are seen to be as they were, and all copies of
    /// weights and state to be equal.
    fn save(&mut self, comm: &Comm) -> Result<()> {
        // Every rank looks: the files may be copies on the disks of the nodes. A few `stat` calls a save cost nothing.
        comm.agree(self.feed.unchanged())?;
        copies::must_be_equal(&mut self.trainer, comm)?;
        let header = state::header(&self.trainer, self.feed.fingerprint(self.trainer.step))?;
        let begun = self.saver.begin(comm, &header, state::pieces(&self.trainer));
        self.saved = Some(self.trainer.step);
        self.announce_save();
        begun
    }

    /// Says that a checkpoint is complete, once.
    fn announce_save(&mut self) {
        let Some(save) = self.saver.completed().filter(|save| self.announced != Some(save.step)) else { return };
        self.announced = Some(save.step);
        self.status.saved(save.step);
        if let Some(logs) = &self.logs {
            logs.progress.saved(save.step, save.bytes, save.time);
        }
    }
}

/// `writer` describes this rank. Where `space` is given, each save is compared with what is free.
fn saver(config: &Config, writer: String, space: Option<Space>) -> Saver {
    let c = &config.checkpoint;
    let options = Options {
        retention: retention(config),
        export_interval: c.export_interval,
        records: vec![c.dir.join(METRICS)],
        retry: retry(config, &writer),
        space,
    };
    Saver::new(&c.dir, options, writer)
}

fn retention(config: &Config) -> Retention {
    Retention { keep: config.checkpoint.keep, keep_every: config.checkpoint.keep_every }
}

/// Repeats the writes of the rank that `writer` describes.
pub fn retry(config: &Config, writer: &str) -> Retry {
    Retry::new(Duration::from_secs(config.checkpoint.retry_seconds), writer, Arc::new(to_stderr))
}

/// The space that saves need, on rank 0, which warns where the disk has less than all of them. What is not known ends
/// no run.
fn space(config: &Config, step: u64, logs: &Logs) -> Option<Space> {
    let (c, last) = (&config.checkpoint, config.train.steps);
    let space = Space::of(&config.model, &c.dir).ok()?;
    let (interval, export_interval, at_end) = (c.interval, c.export_interval, c.at_end);
    let ahead = Ahead { step, last, interval, export_interval, at_end };
    let warning = space.shortage(&c.dir, &ahead, retention(config)).ok()?;
    warning.into_iter().for_each(|warning| logs.progress.warn(&warning));
    Some(space)
}

/// Makes the export that a run was killed at after its last step. Collective.
pub fn finish_export(config: &Config, step: u64, comm: &Comm) -> Result<()> {
    let mut saver = saver(config, format!("rank {} on {}", comm.rank(), host()), None);
    saver.export_missing(comm, step)?;
    saver.finish(comm)
}

/// The host of every rank. Collective.
fn hosts(comm: &Comm) -> Vec<String> {
    let hosts = comm.all_gather_bytes(host().as_bytes());
    hosts.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// The sampler of this rank. Rank 0 also records the machine that the run is on.
fn sampler<B: Backend>(trainer: &Trainer<B>, hosts: Vec<String>, rank: usize) -> RankSampler {
    let (config, mesh) = (&trainer.config, &trainer.rank_layout.mesh);
    if rank == 0 {
        let machine = Machine {
            version: env!("CARGO_PKG_VERSION").into(),
            device: trainer.b.device(),
            precision: <B::Act as Elem>::NAME.to_lowercase(),
            hosts: hosts.clone(),
        };
        informative::warn_of_failure(machine.write(&config.checkpoint.dir.join("machine.json")));
    }
    RankSampler::new(config, mesh, hosts, rank)
}

/// The description of this rank in a checkpoint's manifest.
pub fn writer(rank_layout: &RankLayout) -> String {
    let RankLayout { rank, tp, stage, dp, .. } = rank_layout;
    format!("rank {rank} (tp {}, pp {stage}, dp {}) on {}", tp.0, dp.0, host())
}
