//! Repeats writes that fail in a way that may pass ([`Error::Disk`]): a full disk, a file server that restarts.
//!
//! What is repeated is up to the caller, and is a whole file wherever possible: after a failed flush Linux counts the
//! pages that it lost as clean, so that flushing the same file once more would succeed without writing them.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The pause after the first failure; each further one is twice as long, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// Receives the lines about failures and recoveries. Any thread may call it.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// For how long writes are repeated, and who hears of it. Clones share what they have said.
#[derive(Clone)]
pub struct Retry {
    limit: Duration,
    /// The beginning of each line: the rank, its host, and what it is writing.
    name: String,
    tell: Tell,
    /// The causes that were reported.
    told: Arc<Mutex<BTreeSet<String>>>,
}

impl Retry {
    /// Repeats a write until it has failed for `limit`; 0: not. `name` is the rank and its host.
    pub fn new(limit: Duration, name: &str, tell: Tell) -> Retry {
        Retry { limit, name: name.into(), tell, told: Arc::default() }
    }

    /// Repeats nothing.
    pub fn never() -> Retry {
        Retry::new(Duration::ZERO, "", Arc::new(|_| ()))
    }

    /// The same for one purpose, such as "checkpoint of step 500". Each cause is reported once for it.
    pub fn of(&self, purpose: &str) -> Retry {
        Retry { name: format!("{}: {purpose}", self.name), told: Arc::default(), ..self.clone() }
    }

    /// Whether anything is repeated.
    pub fn repeats(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Reports a line.
    pub fn tell(&self, line: &str) {
        (self.tell)(line);
    }

    /// The result of `attempt`, which is made again while it fails with [`Error::Disk`] and the time is not over. It
    /// is made at least twice, since one attempt may take longer than that.
    pub fn run<T>(&self, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let what = match attempt() {
            Err(Error::Disk(what)) if self.repeats() => what,
            result => return result,
        };
        let (start, mut pause, reported) = (Instant::now(), FIRST, self.report(&what));
        loop {
            std::thread::sleep(pause.min(self.limit.saturating_sub(start.elapsed())));
            pause = (2 * pause).min(LONGEST);
            match attempt() {
                Err(Error::Disk(_)) if start.elapsed() < self.limit => {}
                Err(Error::Disk(what)) => {
                    let seconds = start.elapsed().as_secs();
                    return Err(Error::Disk(format!("{what}; it was tried again for {seconds} s")));
                }
                result => {
                    if result.is_ok() && reported {
                        let seconds = start.elapsed().as_secs_f64();
                        self.tell(&format!(
                            "{}: the disk works again after {seconds:.1} s, and writing goes on",
                            self.name
                        ));
                    }
                    return result;
                }
            }
        }
    }

    /// Reports a failure, unless one with the same cause was reported. `what` is "file: cause", as [`Error::io`] says.
    fn report(&self, what: &str) -> bool {
        let cause = what.rsplit(": ").next().unwrap_or(what);
        let new = self.told.lock().expect("nothing panics while it holds this").insert(cause.to_string());
        if new {
            let seconds = self.limit.as_secs();
            self.tell(&format!("warning: {}: {what}; trying again for {seconds} s", self.name));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use std::path::Path;

    fn failing(code: Errno) -> Error {
        Error::io(Path::new("dir/file"), std::io::Error::from_raw_os_error(code as i32))
    }

    /// A [`Retry`] and the lines that it has reported.
    fn recorded(limit: Duration) -> (Retry, Arc<Mutex<Vec<String>>>) {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let told = lines.clone();
        let tell: Tell = Arc::new(move |line| told.lock().unwrap().push(line.to_string()));
        (Retry::new(limit, "rank 3 on gpu042", tell).of("checkpoint of step 5"), lines)
    }

    /// Fails `n` times with `code`, then gives 7.
    fn after(mut n: usize, code: Errno) -> impl FnMut() -> Result<u32> {
        move || match n.checked_sub(1) {
            Some(left) => {
                n = left;
                Err(failing(code))
            }
            None => Ok(7),
        }
    }

    #[test]
    fn what_passes_is_tried_again_and_each_cause_reported_once() {
        let (retry, lines) = recorded(Duration::from_secs(60));
        for code in [Errno::ENOSPC, Errno::EIO, Errno::ENOSPC] {
            assert_eq!(retry.run(after(3, code)).unwrap(), 7);
        }
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 4, "{lines:?}");
        let failed = "warning: rank 3 on gpu042: checkpoint of step 5: dir/file: No space left on device (os error \
                      28); trying again for 60 s";
        assert_eq!(lines[0], failed);
        assert!(lines[1].starts_with("rank 3 on gpu042: checkpoint of step 5: the disk works again after "));
        assert!(lines[2].contains("Input/output error"), "{lines:?}");
    }

    #[test]
    fn other_errors_and_the_end_of_the_time_are_final() {
        let (retry, lines) = recorded(Duration::from_millis(150));
        let mut n = 0;
        let refused = retry.run(|| -> Result<()> {
            n += 1;
            Err(failing(Errno::EACCES))
        });
        assert_eq!((refused.unwrap_err().exit_code(), n), (2, 1));
        let full = retry.run(after(999, Errno::ENOSPC)).unwrap_err();
        assert!(matches!(full, Error::Disk(_)) && full.to_string().contains("it was tried again for "), "{full}");
        assert_eq!(lines.lock().unwrap().len(), 1);
        let once = Retry::never().run(after(1, Errno::EIO)).unwrap_err();
        assert_eq!(once.to_string(), "dir/file: Input/output error (os error 5)");
    }
}
