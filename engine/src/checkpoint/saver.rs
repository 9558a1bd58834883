//! Asynchronous saving. Every rank copies its pieces to host memory and continues training, while a background thread
//! writes them and reads them back. When the threads of all ranks are done, a thread of rank 0 writes the manifest,
//! renames the directory and sets `latest`. The threads make no MPI calls: the ranks compare their progress in
//! [`Saver::poll`], on their main threads.
//!
//! Where a disk fails in a way that may pass, the thread tries again for a while ([`Retry`]): each file of pieces is
//! written anew as a whole, and each rename or flush that follows is repeated by itself. If a save fails for good, all
//! ranks get the error, its files are removed, and `latest` stays as it was.
//!
//! Where an export of a checkpoint is due, another thread of rank 0 makes it once the checkpoint is complete, beside
//! the saves that follow. One export is made at a time.

use super::commit::{self, Commit};
use super::exchange::agree;
use super::{Exchange, Header, Piece, Retention, Space, directory, exports, shard};
use crate::error::{Error, Result};
use crate::retry::Retry;
use crossbeam::channel::{Sender, bounded, unbounded};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a run saves. The default keeps every checkpoint, exports none and repeats nothing.
pub struct Options {
    pub retention: Retention,
    /// Steps between checkpoints that are also exported, each once it is complete; 0: none.
    pub export_interval: u64,
    /// Files of the run that are flushed before a checkpoint is complete: they have what led to it.
    pub records: Vec<PathBuf>,
    pub retry: Retry,
    /// The space that each save takes; `None`: it is not compared with what is free.
    pub space: Option<Space>,
}

impl Default for Options {
    fn default() -> Options {
        let (retention, retry) = (Retention::default(), Retry::never());
        Options { retention, export_interval: 0, records: Vec::new(), retry, space: None }
    }
}

/// Makes a run's checkpoints. Every rank has one, and all ranks call its methods together.
pub struct Saver {
    run: PathBuf,
    options: Options,
    writer: String,
    copied: usize,
    in_progress: Option<Save>,
    /// See [`Saver::completed`].
    completed: Option<Completed>,
    exporting: Option<Exporting>,
}

/// An export that is being written.
struct Exporting {
    step: u64,
    /// Only rank 0 has it.
    task: Option<Task<()>>,
}

/// A complete checkpoint. Only rank 0 knows its size and time; elsewhere both are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    pub step: u64,
    pub bytes: u64,
    /// From the start of the save until `latest` named it.
    pub time: Duration,
}

/// A checkpoint that is being written.
struct Save {
    begun: Instant,
    dir: PathBuf,
    header: Header,
    retry: Retry,
    stage: Stage,
}

enum Stage {
    /// Every rank writes its files; the task returns the checksum of their list.
    Writing(Task<String>),
    /// Rank 0 makes a checkpoint of all ranks' files.
    Committing(Option<Task<Completed>>),
}

impl Saver {
    /// Saves into the directory `run`. `writer` describes this rank in messages about its files: "rank 3 (tp 1, pp 0,
    /// dp 1) on gpu042".
    pub fn new(run: &Path, options: Options, writer: String) -> Saver {
        Saver { run: run.into(), options, writer, copied: 0, in_progress: None, completed: None, exporting: None }
    }

    /// Bytes of the largest host copy that [`Saver::begin`] made.
    pub fn copied(&self) -> usize {
        self.copied
    }

    /// The last checkpoint that this run completed; its step is the same on all ranks.
    pub fn completed(&self) -> Option<Completed> {
        self.completed
    }

    /// Time since the start of the save in progress.
    pub fn saving_since(&self) -> Option<Duration> {
        self.in_progress.as_ref().map(|save| save.begun.elapsed())
    }

    /// Whether a checkpoint is being written; the same on all ranks.
    pub fn is_saving(&self) -> bool {
        self.in_progress.is_some()
    }

    /// Whether the checkpoint of `step` has to wait for an earlier save, or for an earlier export where it is to be
    /// exported itself; the same on all ranks.
    pub fn must_wait(&self, step: u64) -> bool {
        self.is_saving() || (self.exports(step) && self.exporting.is_some())
    }

    fn exports(&self, step: u64) -> bool {
        let interval = self.options.export_interval;
        interval > 0 && step > 0 && step.is_multiple_of(interval)
    }

    /// Starts the export that a run which was killed after `step` left undone, if there is one. Collective.
    pub fn export_missing(&mut self, comm: &impl Exchange, step: u64) -> Result<()> {
        let interval = self.options.export_interval;
        if interval == 0 {
            return Ok(());
        }
        let find = || exports::missing(&self.run, step, interval);
        let missing = agree(comm, if comm.rank() == 0 { find() } else { Ok(None) })?[0];
        if let Some(step) = missing {
            self.start_export(comm, step);
        }
        Ok(())
    }

    /// Starts the checkpoint of `header.position.step`. Returns when the host copies of `pieces` are made, or started
    /// where the backend copies asynchronously. Collective.
    ///
    /// The pieces of all ranks cover every tensor once in each kind that is saved. A device's pinned memory is returned
    /// for the next save piece by piece, as they are written. A save still in progress is finished first.
    pub fn begin(&mut self, comm: &impl Exchange, header: &Header, pieces: impl Iterator<Item = Piece>) -> Result<()> {
        let queue = self.start(comm, header, None)?;
        // All copies are made before any is written: a thread that writes would slow them down, and training waits.
        let copied: Vec<Piece> = pieces.collect();
        self.copied = self.copied.max(copied.iter().map(|piece| piece.rect.len() * size_of::<f32>()).sum());
        send(queue, copied.into_iter().map(Ok));
        Ok(())
    }

    /// Called between two steps: moves save and export to their next stages once all ranks are done with these ones.
    /// Collective.
    pub fn poll(&mut self, comm: &impl Exchange) -> Result<()> {
        if self.in_progress.is_none() && self.exporting.is_none() {
            return Ok(());
        }
        let saved = self.in_progress.as_ref().is_some_and(|save| save.stage.is_done());
        let exported = self.exporting.as_ref().is_some_and(|export| is_done(export.task.as_ref()));
        let done = comm.all_gather_bytes(&[saved as u8, exported as u8]);
        let all_done = |part: usize| done.iter().all(|rank| rank[part] == 1);
        if all_done(1) {
            self.finish_export(comm)?;
        }
        if all_done(0) { self.advance(comm) } else { Ok(()) }
    }

    /// Waits for the save and the export in progress. Collective.
    pub fn finish(&mut self, comm: &impl Exchange) -> Result<()> {
        self.finish_save(comm)?;
        if self.exporting.is_none() {
            return Ok(());
        }
        self.finish_export(comm)?;
        // The checkpoint that was exported may be older than those to keep.
        let prune = || match directory::latest_step(&self.run)? {
            Some(step) => directory::prune(&self.run, step, self.options.retention, None),
            None => Ok(()),
        };
        agree(comm, if comm.rank() == 0 { self.options.retry.run(prune) } else { Ok(()) }).map(drop)
    }

    /// Removes what was written of a save that cannot become complete, because this rank ends the run without the
    /// others. Not collective.
    pub fn abandon(&self) {
        if let Some(Save { dir, stage: Stage::Writing(_), .. }) = &self.in_progress {
            commit::discard(dir);
        }
    }

    fn finish_save(&mut self, comm: &impl Exchange) -> Result<()> {
        while self.is_saving() {
            self.advance(comm)?;
        }
        Ok(())
    }

    fn finish_export(&mut self, comm: &impl Exchange) -> Result<()> {
        let Some(Exporting { task, .. }) = self.exporting.take() else { return Ok(()) };
        agree(comm, task.map_or(Ok(()), |task| wait(comm, task, "export"))).map(drop)
    }

    /// Starts the export of a complete checkpoint, when no other is being made.
    fn start_export(&mut self, comm: &impl Exchange, step: u64) {
        let (run, retention) = (self.run.clone(), self.options.retention);
        let retry = self.options.retry.of(&format!("export of step {step}"));
        let task = (comm.rank() == 0).then(|| Task::start(move || exports::write(&run, step, retention, &retry)));
        self.exporting = Some(Exporting { step, task });
    }

    /// Saves a whole checkpoint of pieces that are read one after another, a few of them in memory at a time. Returns
    /// the checkpoint's directory.
    pub fn save(
        &mut self,
        comm: &impl Exchange,
        header: &Header,
        pieces: impl Iterator<Item = Result<Piece>>,
    ) -> Result<PathBuf> {
        let queue = self.start(comm, header, Some(1))?;
        send(queue, pieces);
        self.finish(comm)?;
        Ok(self.dir(header))
    }

    /// Starts a save of the pieces that the caller puts into the returned queue, whose capacity is `room` pieces.
    pub(super) fn start(
        &mut self,
        comm: &impl Exchange,
        header: &Header,
        room: Option<usize>,
    ) -> Result<Sender<Result<Piece>>> {
        self.finish_save(comm)?;
        let begun = Instant::now();
        if self.exports(header.position.step) {
            self.finish_export(comm)?;
        }
        let (dir, rank, writer, step) = (self.dir(header), comm.rank(), self.writer.clone(), header.position.step);
        let retry = self.options.retry.of(&format!("checkpoint of step {step}"));
        let clean = || retry.run(|| directory::clean(&self.run));
        agree(comm, if rank == 0 { clean() } else { Ok(()) })?;
        let (queue, pieces) = room.map_or_else(unbounded, bounded);
        let (temporary, alone) = (directory::temporary(&dir), comm.size() == 1);
        let short = self.options.space.filter(|_| rank == 0).map(|space| (space, self.run.clone(), self.exports(step)));
        let repeated = retry.clone();
        let task = Task::start(move || {
            if let Some((space, run, exports)) = short {
                space.warn_before(&run, step, exports, &repeated);
            }
            let written = shard::write(&temporary, rank, writer.clone(), pieces.into_iter(), &repeated);
            written.map_err(|error| if alone { error } else { error.map(|what| format!("{writer}: {what}")) })
        });
        self.in_progress = Some(Save { begun, dir, header: header.clone(), retry, stage: Stage::Writing(task) });
        Ok(queue)
    }

    /// The directory of this checkpoint.
    fn dir(&self, header: &Header) -> PathBuf {
        directory::checkpoints(&self.run).join(directory::step_name(header.position.step))
    }

    /// Waits for this stage on all ranks, and starts the next one.
    fn advance(&mut self, comm: &impl Exchange) -> Result<()> {
        let Some(Save { begun, dir, header, retry, stage }) = self.in_progress.take() else {
            return Ok(());
        };
        match stage {
            Stage::Writing(task) => {
                let shards = agree(comm, wait(comm, task, "checkpoint files")).inspect_err(|_| {
                    if comm.rank() == 0 {
                        commit::discard(&dir);
                    }
                })?;
                let commit = || Commit {
                    run: self.run.clone(),
                    dir: dir.clone(),
                    header: header.clone(),
                    shards,
                    records: self.options.records.clone(),
                    retention: self.options.retention,
                    // The checkpoint that is being exported is still read.
                    read: self.exporting.as_ref().map(|export| export.step),
                    retry: retry.clone(),
                };
                let commit = (comm.rank() == 0).then(commit);
                let run = move |commit: Commit| {
                    let (step, bytes) = (commit.header.position.step, commit.run()?);
                    Ok(Completed { step, bytes, time: begun.elapsed() })
                };
                let task = commit.map(|commit| Task::start(move || run(commit)));
                self.in_progress = Some(Save { begun, dir, header, retry, stage: Stage::Committing(task) });
            }
            Stage::Committing(task) => {
                let step = header.position.step;
                let elsewhere = Completed { step, bytes: 0, time: Duration::ZERO };
                let (mine, completed) = task
                    .map_or(Ok(elsewhere), |task| wait(comm, task, "manifest"))
                    .map_or_else(|error| (Err(error), None), |completed| (Ok(()), Some(completed)));
                agree(comm, mine)?;
                self.completed = completed;
                if self.exports(step) {
                    self.start_export(comm, step);
                }
            }
        }
        Ok(())
    }
}

impl Stage {
    /// Whether this rank's part of the stage is done.
    fn is_done(&self) -> bool {
        match self {
            Stage::Writing(task) => task.is_done(),
            Stage::Committing(task) => is_done(task.as_ref()),
        }
    }
}

/// Whether this rank has nothing left to do for a task that only rank 0 has.
fn is_done<T: Send + 'static>(task: Option<&Task<T>>) -> bool {
    task.is_none_or(Task::is_done)
}

/// Work on a background thread, or the error of making that.
struct Task<T>(Result<JoinHandle<Result<T>>>);

impl<T: Send + 'static> Task<T> {
    fn start(work: impl FnOnce() -> Result<T> + Send + 'static) -> Task<T> {
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(work);
        Task(thread.map_err(|e| Error::run(format!("a thread cannot be made: {e}; raise `ulimit -u`"))))
    }

    fn is_done(&self) -> bool {
        self.0.as_ref().map_or(true, JoinHandle::is_finished)
    }

    fn wait(self) -> Result<T> {
        self.0?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// The result of a task, while the flight recorder says what this rank waits for.
fn wait<T: Send + 'static>(comm: &impl Exchange, task: Task<T>, what: &str) -> Result<T> {
    let _working = comm.working(what);
    task.wait()
}

/// Fills the queue and closes it. A writer that failed accepts no more pieces; its error is returned when it is waited
/// for.
fn send(queue: Sender<Result<Piece>>, mut pieces: impl Iterator<Item = Result<Piece>>) {
    let _ = pieces.try_for_each(|piece| queue.send(piece));
}
