//! A thread writes the lines of a run's log to standard output, so that training never blocks on a full pipe. After
//! SIGTERM, mpirun stops reading the output of its ranks; a rank that blocks in a write then cannot save before mpirun
//! kills it.

use std::cell::Cell;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Lines that wait to be written; further lines of steps are left out.
const WAITING: usize = 1000;
/// The time that the last lines have to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Writes lines in their order. Dropping it waits for the last ones, but not for a reader that takes none.
pub struct LogWriter {
    lines: Option<Sender<String>>,
    waiting: Arc<AtomicUsize>,
    /// Lines left out since the last one that was taken.
    left_out: Cell<usize>,
    /// Closed when the thread has written everything.
    done: Receiver<()>,
}

impl LogWriter {
    /// Writes to standard output.
    pub fn start() -> LogWriter {
        LogWriter::to(std::io::stdout())
    }

    fn to(mut out: impl Write + Send + 'static) -> LogWriter {
        let (lines, taken) = channel::<String>();
        let (ended, done) = channel::<()>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counter = waiting.clone();
        let write = move || {
            let _ended = ended;
            for line in taken {
                // A closed pipe is not an error: its reader has seen enough.
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
                counter.fetch_sub(1, Relaxed);
            }
        };
        let made = std::thread::Builder::new().name("log".into()).spawn(write);
        // A process that cannot have one more thread trains without these lines.
        LogWriter { lines: made.is_ok().then_some(lines), waiting, left_out: Cell::new(0), done }
    }

    /// Adds the line of a step, unless too many wait: `metrics.jsonl` has every step. Returns at once.
    pub fn step(&self, line: String) {
        if self.waiting.load(Relaxed) < WAITING {
            self.line(line);
        } else {
            self.left_out.set(self.left_out.get() + 1);
        }
    }

    /// Adds a line, of which a run has few. Returns at once.
    pub fn line(&self, line: String) {
        let Some(lines) = &self.lines else { return };
        let line = match self.left_out.take() {
            0 => line,
            missed => format!("({missed} steps were not read in time; metrics.jsonl has every step)\n{line}"),
        };
        self.waiting.fetch_add(1, Relaxed);
        // The thread ends only after this sender.
        let _ = lines.send(line);
    }

    /// Waits until all lines are written, for a limited time.
    pub fn finish(&mut self) {
        if self.lines.take().is_some() {
            // Nothing is ever sent: the thread closes the channel when it ends.
            let _ = self.done.recv_timeout(LAST_LINES);
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::time::Instant;

    #[test]
    fn lines_are_written_in_their_order() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut log = LogWriter::to(writer);
        (0..5).for_each(|i| log.line(format!("line {i}")));
        log.finish();
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["line 0", "line 1", "line 2", "line 3", "line 4"]);
    }

    /// 8 MB of lines, far more than a pipe holds and than may wait.
    #[test]
    fn a_reader_that_takes_nothing_holds_up_nobody() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut log = LogWriter::to(writer);
        let start = Instant::now();
        for i in 0..8000 {
            log.step(format!("{i:01000}"));
            if i % 100 == 0 {
                log.line(format!("saved {i}"));
            }
        }
        log.finish();
        assert!(start.elapsed() < 10 * LAST_LINES, "{:?}", start.elapsed());
        drop(log);
        // Every gap has a note, which stands where the steps are missing.
        let (mut next, mut saved) = (0, 0);
        for line in BufReader::new(reader).lines().map(Result::unwrap) {
            if let Some(step) = line.strip_prefix("saved ") {
                assert_eq!(step.parse::<usize>().unwrap(), 100 * saved);
                saved += 1;
            } else if let Some((missed, _)) = line.strip_prefix('(').and_then(|line| line.split_once(' ')) {
                next += missed.parse::<usize>().unwrap();
            } else {
                assert_eq!(line.parse::<usize>().unwrap(), next);
                next += 1;
            }
        }
        assert_eq!(saved, 80, "no save is left out");
        assert!(next <= 8000, "{next}");
    }
}
