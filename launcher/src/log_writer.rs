//! The lines of a run's log, written to standard output by a thread, so that training never waits for whoever reads
//! them. mpirun reads nothing more once it has been told to end its ranks: a rank that waited for it could not save
//! before it is killed.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

/// Lines that wait to be written; further ones are left out.
const WAITING: usize = 1000;
/// The time that the last lines have to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Writes lines in their order. Dropping it waits for the last ones, but not for a reader that takes none.
pub struct LogWriter {
    lines: Option<SyncSender<String>>,
    /// Lines left out since the last one that was taken.
    left_out: Arc<AtomicU64>,
    /// Closed when the thread has written everything.
    done: Receiver<()>,
}

impl LogWriter {
    /// Writes to standard output.
    pub fn start() -> LogWriter {
        LogWriter::to(std::io::stdout())
    }

    fn to(mut out: impl Write + Send + 'static) -> LogWriter {
        let (lines, taken) = sync_channel::<String>(WAITING);
        let (ended, done) = channel::<()>();
        let left_out = Arc::new(AtomicU64::new(0));
        let missed = left_out.clone();
        let write = move || {
            let _ended = ended;
            for line in taken {
                // A closed pipe is not an error: its reader has seen enough.
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
                let missed = missed.swap(0, Relaxed);
                if missed > 0 {
                    let _ = writeln!(out, "({missed} lines were not read in time; metrics.jsonl has every step)");
                }
            }
        };
        let made = std::thread::Builder::new().name("log".into()).spawn(write);
        // A process that cannot have one more thread trains without these lines.
        LogWriter { lines: made.is_ok().then_some(lines), left_out, done }
    }

    /// Adds a line. Returns at once.
    pub fn line(&self, line: String) {
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            self.left_out.fetch_add(1, Relaxed);
        }
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
        (0..8000).for_each(|i| log.line(format!("{i:01000}")));
        log.finish();
        assert!(start.elapsed() < 10 * LAST_LINES, "{:?}", start.elapsed());
        drop(log);
        let lines: Vec<String> = BufReader::new(reader).lines().map(Result::unwrap).collect();
        let written = lines.iter().filter(|line| line.len() == 1000).count();
        let note = |line: &String| line.strip_prefix('(')?.split_once(" lines were not read in time")?.0.parse().ok();
        let missed: Vec<usize> = lines.iter().filter_map(note).collect();
        assert_eq!(written + missed.iter().sum::<usize>(), 8000, "{missed:?}");
        assert!(!missed.is_empty());
    }
}
