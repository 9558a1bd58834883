//! Saving beside the training. Every rank copies its pieces to host memory and goes on; a thread of
//! it writes them and reads them back. When the threads of all ranks are done, one of rank 0 writes
//! the manifest, renames the directory and sets `latest`. The threads make no MPI calls: the ranks
//! compare where they are in [`Saver::poll`], on their main threads.
//!
//! Whatever fails, all ranks learn it, nothing of that save remains, and `latest` is as it was.

use super::exchange::agree;
use super::manifest::Manifest;
use super::{Exchange, Header, Piece, directory, shard};
use crate::error::{Error, Result};
use crossbeam::channel::{Sender, bounded, unbounded};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// Makes a run's checkpoints. Every rank has one, and all ranks call its methods together.
pub struct Saver {
    run: PathBuf,
    keep: Option<usize>,
    writer: String,
    /// As [`Saver::copied`].
    copied: usize,
    under_way: Option<Save>,
}

/// A checkpoint that is being made.
struct Save {
    dir: PathBuf,
    header: Header,
    stage: Stage,
}

enum Stage {
    /// This rank's files; the checksum of their list comes back.
    Writing(Task<String>),
    /// Rank 0 makes a checkpoint of all ranks' files.
    Committing(Option<Task<()>>),
}

impl Saver {
    /// Of the checkpoints in the directory `run`, the newest `keep` stay. `writer` is how a person
    /// finds this rank again when a file of it is missing: "rank 3 (tp 1, pp 0, dp 1) on gpu042".
    pub fn new(run: &Path, keep: Option<usize>, writer: String) -> Saver {
        Saver { run: run.into(), keep, writer, copied: 0, under_way: None }
    }

    /// Bytes of the largest copy that [`Saver::begin`] made.
    pub fn copied(&self) -> usize {
        self.copied
    }

    /// Whether a checkpoint is being written; the same on all ranks.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Starts the checkpoint of `header.position.step` and comes back when the copies of `pieces` are made, or on the
    /// way where the backend makes them beside its work.
    ///
    /// The pieces of all ranks cover every tensor once in each kind that is saved. Each is given back as it is
    /// written (a device's pinned memory is kept for the next save). A save still under way is finished first.
    pub fn begin(&mut self, comm: &impl Exchange, header: &Header, pieces: impl Iterator<Item = Piece>) -> Result<()> {
        let queue = self.start(comm, header, None)?;
        // All of them first: a thread that writes meanwhile would slow down the copy, which training waits for.
        let copied: Vec<Piece> = pieces.collect();
        self.copied = self.copied.max(copied.iter().map(|piece| piece.rect.len() * size_of::<f32>()).sum());
        send(queue, copied.into_iter().map(Ok));
        Ok(())
    }

    /// Between two steps: moves on with the save under way once all ranks have done their part of it.
    pub fn poll(&mut self, comm: &impl Exchange) -> Result<()> {
        let Some(save) = &self.under_way else {
            return Ok(());
        };
        let done = [save.stage.is_done() as u8];
        if comm.all_gather_bytes(&done).contains(&vec![0]) {
            return Ok(());
        }
        self.advance(comm)
    }

    /// Waits for the save under way.
    pub fn finish(&mut self, comm: &impl Exchange) -> Result<()> {
        while self.is_under_way() {
            self.advance(comm)?;
        }
        Ok(())
    }

    /// A whole save of pieces that are read from somewhere, with a few of them in memory at a time.
    /// The checkpoint's directory comes back.
    pub fn save(
        &mut self,
        comm: &impl Exchange,
        header: &Header,
        pieces: impl Iterator<Item = Result<Piece>>,
    ) -> Result<PathBuf> {
        let queue = self.start(comm, header, Some(1))?;
        send(queue, pieces);
        self.finish(comm)?;
        Ok(self.place(header))
    }

    /// Starts a save of the pieces that are put into the queue, which holds `room` of them.
    pub(super) fn start(
        &mut self,
        comm: &impl Exchange,
        header: &Header,
        room: Option<usize>,
    ) -> Result<Sender<Result<Piece>>> {
        self.finish(comm)?;
        let (dir, rank, writer) = (self.place(header), comm.rank(), self.writer.clone());
        let temporary = directory::temporary(&dir);
        let anew = || directory::clean(&self.run).and_then(|()| directory::create_anew(&temporary));
        agree(comm, if rank == 0 { anew() } else { Ok(()) })?;
        let (queue, pieces) = room.map_or_else(unbounded, bounded);
        let alone = comm.size() == 1;
        let task = Task::start(move || {
            let written = shard::write(&temporary, rank, writer.clone(), pieces.into_iter());
            written.map_err(|error| if alone { error } else { named(&writer, error) })
        });
        self.under_way = Some(Save { dir, header: header.clone(), stage: Stage::Writing(task) });
        Ok(queue)
    }

    fn place(&self, header: &Header) -> PathBuf {
        directory::checkpoints(&self.run).join(directory::step_name(header.position.step))
    }

    /// Waits for the task of this rank, and for the other ranks; then what comes next.
    fn advance(&mut self, comm: &impl Exchange) -> Result<()> {
        let Some(Save { dir, header, stage }) = self.under_way.take() else {
            return Ok(());
        };
        match stage {
            Stage::Writing(task) => {
                let shards = agree(comm, task.wait()).inspect_err(|_| {
                    if comm.rank() == 0 {
                        give_up(&dir);
                    }
                })?;
                let (run, keep, place, head) = (self.run.clone(), self.keep, dir.clone(), header.clone());
                let first = comm.rank() == 0;
                let task = first.then(|| Task::start(move || commit(&run, &place, &head, &shards, keep)));
                self.under_way = Some(Save { dir, header, stage: Stage::Committing(task) });
            }
            Stage::Committing(task) => drop(agree(comm, task.map_or(Ok(()), Task::wait))?),
        }
        Ok(())
    }
}

impl Stage {
    /// This rank's part of it is.
    fn is_done(&self) -> bool {
        match self {
            Stage::Writing(task) => task.is_done(),
            Stage::Committing(task) => task.as_ref().is_none_or(Task::is_done),
        }
    }
}

/// Work on a thread of its own.
struct Task<T>(JoinHandle<Result<T>>);

impl<T: Send + 'static> Task<T> {
    fn start(work: impl FnOnce() -> Result<T> + Send + 'static) -> Task<T> {
        Task(std::thread::spawn(work))
    }

    fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    fn wait(self) -> Result<T> {
        self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Fills the queue and closes it. A writer that failed takes no more; it says so when it is waited for.
fn send(queue: Sender<Result<Piece>>, mut pieces: impl Iterator<Item = Result<Piece>>) {
    let _ = pieces.try_for_each(|piece| queue.send(piece));
}

fn named(writer: &str, error: Error) -> Error {
    match error {
        Error::User(what) => Error::User(format!("{writer}: {what}")),
        Error::Run(what) => Error::Run(format!("{writer}: {what}")),
    }
}

/// Removes what was written. The failure that is reported is the save's; what stays behind goes at
/// the next save.
fn give_up(dir: &Path) {
    let _ = directory::remove(&directory::temporary(dir));
}

/// Rank 0's part: the manifest, the rename, `latest`. `shards` are the checksums of the ranks' lists.
fn commit(run: &Path, dir: &Path, header: &Header, shards: &[String], keep: Option<usize>) -> Result<()> {
    assemble(dir, header, shards).inspect_err(|_| give_up(dir))?;
    directory::set_latest(run, header.position.step)?;
    keep.map_or(Ok(()), |keep| directory::prune(run, header.position.step, keep))
}

fn assemble(dir: &Path, header: &Header, shards: &[String]) -> Result<()> {
    let temporary = directory::temporary(dir);
    let shards = shards.iter().enumerate().map(|(rank, checksum)| shard::take(&temporary, rank, checksum));
    let manifest = Manifest::new(header, shards.collect::<Result<_>>()?)?;
    directory::write(&temporary.join("manifest.json"), &manifest.to_json())?;
    assert_eq!(Manifest::read(&temporary)?, manifest, "the manifest reads back as it was written");
    directory::publish(dir)
}
