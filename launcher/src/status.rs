//! This process's copy of `status.json`, which any of its threads may end the run with.

use crate::stops::StopReason;
use engine::mpi::host;
use report::records::history::{self, What};
use report::records::status::{State, Status, now};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The time between two writes while steps go on.
const INTERVAL: Duration = Duration::from_secs(5);

/// Rank 0 writes while the run goes on; whichever rank reports an end writes that.
pub struct RunStatus {
    dir: PathBuf,
    rank: usize,
    now: Mutex<Current>,
}

struct Current {
    status: Status,
    written: Option<Instant>,
    /// Whether this run has locked the directory. Before that the file may be another run's.
    locked: bool,
    /// Whether the run has begun; one that has not leaves no end in the history.
    begun: bool,
    /// The first end stands: what follows from it is no news.
    ended: bool,
}

impl RunStatus {
    /// The status of a run that has not taken a step. Nothing is written yet.
    pub fn new(dir: &Path, rank: usize, steps: u64) -> RunStatus {
        let status = Status {
            state: State::Running,
            step: 0,
            steps,
            loss: None,
            checkpoint: None,
            host: host(),
            reason: "the run starts".into(),
            pid: std::process::id(),
            time: now(),
        };
        RunStatus {
            dir: dir.into(),
            rank,
            now: Mutex::new(Current { status, written: None, locked: false, begun: false, ended: false }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.now.lock().expect("no thread panics while it holds this lock")
    }

    /// The run has locked its directory, and may write there from now on.
    pub fn locked(&self) {
        self.lock().locked = true;
    }

    /// The step from which the run continues, and its newest checkpoint. Written at once.
    pub fn begin(&self, step: u64, checkpoint: Option<u64>) {
        self.change(Duration::ZERO, |status| {
            (status.step, status.checkpoint) = (step, checkpoint);
            status.reason = if step == 0 { "the run begins".into() } else { format!("it continues after step {step}") };
        });
        self.lock().begun = true;
    }

    /// A step is done. Written now and then.
    pub fn step(&self, step: u64, loss: f64) {
        self.change(INTERVAL, |status| {
            (status.step, status.loss) = (step, Some(loss));
            status.reason = "steps go on".into();
        });
    }

    /// A checkpoint is complete. Written at once.
    pub fn saved(&self, step: u64) {
        self.change(Duration::ZERO, |status| status.checkpoint = Some(step));
    }

    /// Somebody asked the run to stop. Written at once.
    pub fn stopping(&self, reason: &str) {
        self.change(Duration::ZERO, |status| status.reason = reason.into());
    }

    fn change(&self, interval: Duration, change: impl FnOnce(&mut Status)) {
        let mut current = self.lock();
        if current.ended {
            return;
        }
        change(&mut current.status);
        let is_due = current.written.is_none_or(|at| at.elapsed() >= interval);
        if self.rank != 0 || !is_due || !current.locked {
            return;
        }
        current.written = Some(Instant::now());
        current.status.time = now();
        let (status, begun) = (current.status.clone(), current.begun);
        // Not under the lock: a disk that does not answer must not hold up whoever ends the run.
        drop(current);
        // Another rank may have reported the end of this run, which is about to reach this one.
        if begun && Status::read(&self.dir).is_ok_and(|status| status.is_some_and(|s| s.state != State::Running)) {
            return;
        }
        // The file only informs: a run goes on without it.
        let _ = status.write(&self.dir, &format!("{}.now", self.rank));
        let current = self.lock();
        // Another thread has ended the run in the meantime, and its words stand.
        if current.ended {
            let _ = current.status.write(&self.dir, &format!("{}.now", self.rank));
        }
    }

    /// The run ends, as all ranks know: rank 0 writes it.
    fn end_together(&self, state: State, reason: &str) {
        match self.rank {
            0 => self.end(state, reason),
            _ => self.lock().ended = true,
        }
    }

    /// The run ends, as this rank says; the first who says so is heard.
    pub fn end(&self, state: State, reason: &str) {
        let mut current = self.lock();
        if std::mem::replace(&mut current.ended, true) {
            return;
        }
        (current.status.state, current.status.reason, current.status.time) = (state, reason.into(), now());
        let (status, locked, begun) = (current.status.clone(), current.locked, current.begun);
        drop(current);
        if !locked {
            return;
        }
        // Both files only inform.
        let _ = status.write(&self.dir, &format!("{}.end", self.rank));
        if begun {
            let (step, state, reason) = (status.step, state.name().into(), status.reason);
            let _ = history::append(&self.dir, What::End { step, state, reason });
        }
    }

    /// "step 41 of 100 is done; the newest checkpoint is of step 40".
    pub fn standing(&self) -> String {
        let Status { step, steps, checkpoint, .. } = self.lock().status.clone();
        let newest = match checkpoint {
            Some(saved) => format!("the newest checkpoint is of step {saved}"),
            None => "there is no checkpoint".to_string(),
        };
        format!("step {step} of {steps} is done, and {newest}")
    }

    /// All steps are done, or the run stopped early as it was asked to. Returns the last line of the log.
    pub fn ended(&self, stopped: Option<StopReason>) -> String {
        let standing = self.standing();
        let (state, line) = match stopped {
            None => (State::Finished, format!("finished: {standing}")),
            Some(reason) => {
                let (why, saved) = (reason.describe(), self.lock().status.checkpoint.is_some());
                let next = if saved { "continues the run" } else { "starts over, since nothing was saved" };
                (State::Stopped, format!("stopped, since {why}: {standing}; the same command {next}"))
            }
        };
        self.end_together(state, &line);
        line
    }

    /// The run failed with this message on all ranks. Returns what to add to it: how the run stands and what to do.
    pub fn failed(&self, what: &str) -> String {
        let more = self.remedy();
        self.end_together(State::Failed, what);
        more
    }

    /// [`RunStatus::failed`] on this rank, which ends the others.
    pub fn failed_alone(&self, what: &str) -> String {
        let more = self.remedy();
        self.end(State::Failed, what);
        more
    }

    fn remedy(&self) -> String {
        format!("\n{}; once the cause is mended, the same command continues the run", self.standing())
    }

    /// The run was refused before its first step. An earlier end is no longer how it stands, but a directory that had
    /// no run does not get a file of one.
    pub fn refused(&self, what: &str) {
        let Ok(Some(before)) = Status::read(&self.dir) else { return };
        if self.rank == 0 {
            let Status { step, loss, checkpoint, .. } = before;
            let now = &mut self.lock().status;
            (now.step, now.loss, now.checkpoint) = (step, loss, checkpoint);
        }
        self.end_together(State::Failed, what);
    }

    /// The run had all its steps when it was started.
    pub fn nothing_left(&self, step: u64) {
        self.lock().status.step = step;
        self.lock().status.checkpoint = Some(step);
        if self.rank == 0 {
            self.end(State::Finished, "the run had all its steps already");
        }
    }

    /// From now on a panic of this process is the end of the run, too.
    pub fn end_on_panic(self: &Arc<Self>) {
        let (status, next) = (self.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |info| {
            status.end(State::Failed, &format!("a bug of this program on {}: {info}", host()));
            next(info);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until the directory is locked, its file is another run's.
    #[test]
    fn only_the_run_that_holds_the_lock_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (live, second) = (RunStatus::new(dir.path(), 0, 10), RunStatus::new(dir.path(), 0, 10));
        live.locked();
        live.begin(4, Some(4));
        let before = Status::read(dir.path()).unwrap();
        second.begin(0, None);
        second.end(State::Failed, "a second signal");
        assert_eq!(Status::read(dir.path()).unwrap(), before);
        assert_eq!(history::read(dir.path()).unwrap(), []);
        live.end(State::Failed, "a fault");
        assert_eq!(Status::read(dir.path()).unwrap().unwrap().state, State::Failed);
    }

    #[test]
    fn a_refused_start_keeps_the_step_and_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let [first, refused] = [(), ()].map(|()| RunStatus::new(dir.path(), 0, 10));
        first.refused("a directory without a run gets no file");
        assert_eq!(Status::read(dir.path()).unwrap(), None);
        first.locked();
        first.begin(7, Some(6));
        refused.locked();
        refused.refused("another model");
        let Status { state, step, checkpoint, .. } = Status::read(dir.path()).unwrap().unwrap();
        assert_eq!((state, step, checkpoint), (State::Failed, 7, Some(6)));
    }
}
