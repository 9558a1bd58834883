//! The ways a run ends early that are not bugs: the user's mistake, a failure of the run, and a disk that fails in a
//! way that may pass.
//! A bug is an `assert!` with both numbers; it never becomes an [`Error`].

use nix::errno::Errno;
use std::io::ErrorKind;
use std::path::Path;

/// Why the program stops. The launcher turns it into the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's mistake: the message names the file, key or flag, its value, and what would be right. Exit 2.
    #[error("{0}")]
    User(String),
    /// The run failed through no mistake of the user's: a device fault, a file that reads back wrongly. Exit 1.
    #[error("{0}")]
    Run(String),
    /// A disk failed in a way that may pass: it is full, or a network file system is away. What a run must write is
    /// tried again for a while ([`Retry`](crate::retry::Retry)); then the run has failed. Exit 1.
    #[error("{0}")]
    Disk(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// `1 rank`, `3 ranks`.
pub fn counted(n: usize, noun: &str) -> String {
    let plural = if noun.ends_with("ch") { "es" } else { "s" };
    format!("{n} {noun}{}", if n == 1 { "" } else { plural })
}

/// The fault of a path and its remedy, for the kinds of errors that only the user can fix.
fn remedy(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some("it does not exist; check the path"),
        ErrorKind::NotADirectory => Some("a part of this path is a file, not a directory; check the path"),
        ErrorKind::IsADirectory => Some("it is a directory, not a file; check the path"),
        ErrorKind::PermissionDenied => Some("permission denied; change its permissions, or name another path"),
        ErrorKind::ReadOnlyFilesystem => Some("its file system is read-only; name a path that can be written"),
        ErrorKind::InvalidFilename => Some("its name is too long; name another path"),
        ErrorKind::AlreadyExists => Some("it exists already; remove it, or name another path"),
        ErrorKind::InvalidData => Some("its contents are damaged, or not UTF-8 where text is expected; check the file"),
        _ => None,
    }
}

/// Whether the same write may succeed later. The kernel interrupts a call, or has no memory for it, for a moment; a
/// disk is full until something is removed; a network file system gives EIO and ESTALE while its server restarts.
fn may_pass(error: &std::io::Error) -> bool {
    let passing =
        [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::ESTALE, Errno::ETIMEDOUT, Errno::EAGAIN, Errno::EINTR];
    error.raw_os_error().is_some_and(|code| passing.contains(&Errno::from_raw(code)))
}

impl Error {
    pub fn user(what: impl Into<String>) -> Self {
        Error::User(what.into())
    }

    pub fn run(what: impl Into<String>) -> Self {
        Error::Run(what.into())
    }

    /// A file that could not be read or written. If the user has to act (a path that does not exist, a read-only file
    /// system), it is the user's mistake; anything else is a failed run, or a disk that may recover.
    pub fn io(path: &Path, error: std::io::Error) -> Self {
        let path = path.display();
        match remedy(error.kind()) {
            // The error has the detail, such as a decompressor's.
            Some(remedy) if error.kind() == ErrorKind::InvalidData => Error::User(format!("{path}: {error}; {remedy}")),
            Some(remedy) => Error::User(format!("{path}: {remedy}")),
            None if may_pass(&error) => Error::Disk(format!("{path}: {error}")),
            None if error.kind() == ErrorKind::FileTooLarge => {
                let limit = "the file system or a limit of the shell or job (ulimit -f) allows no larger file";
                Error::Run(format!("{path}: {error}; {limit}"))
            }
            None => Error::Run(format!("{path}: {error}")),
        }
    }

    /// The same kind of error with another message.
    pub fn map(self, message: impl FnOnce(String) -> String) -> Self {
        match self {
            Error::User(what) => Error::User(message(what)),
            Error::Run(what) => Error::Run(message(what)),
            Error::Disk(what) => Error::Disk(message(what)),
        }
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Error::User(_) => 2,
            Error::Run(_) | Error::Disk(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_that_the_user_mends_has_a_remedy() {
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
            ErrorKind::PermissionDenied,
            ErrorKind::ReadOnlyFilesystem,
            ErrorKind::IsADirectory,
            ErrorKind::NotADirectory,
            ErrorKind::InvalidFilename,
            ErrorKind::InvalidData,
        ] {
            let error = Error::io(Path::new("a/b"), kind.into());
            let message = error.to_string();
            assert_eq!(error.exit_code(), 2, "{message}");
            assert!(message.starts_with("a/b: ") && message.contains("; "), "{message}");
        }
        let absent = std::fs::File::open("/nowhere/a").unwrap_err();
        assert_eq!(Error::io(Path::new("a"), absent).to_string(), "a: it does not exist; check the path");
        let below_a_file = std::fs::File::open("/proc/self/exe/a").unwrap_err();
        assert!(Error::io(Path::new("a"), below_a_file).to_string().contains("is a file, not a directory"));
    }

    #[test]
    fn the_user_acts_on_paths_and_the_run_fails_on_full_disks() {
        let code = |kind: ErrorKind| Error::io(Path::new("x"), kind.into()).exit_code();
        let user = [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];
        let run = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge, ErrorKind::TimedOut];
        assert_eq!((user.map(code), run.map(code)), ([2; 3], [1; 4]));
    }

    #[test]
    fn a_disk_that_may_recover_is_told_from_one_that_will_not() {
        let of = |code: Errno| Error::io(Path::new("x"), std::io::Error::from_raw_os_error(code as i32));
        for code in [Errno::ENOSPC, Errno::EDQUOT, Errno::EIO, Errno::ESTALE, Errno::EAGAIN] {
            assert!(matches!(of(code), Error::Disk(_)), "{code}");
        }
        for code in [Errno::EFBIG, Errno::ENOENT, Errno::EROFS, Errno::EACCES, Errno::EINVAL] {
            assert!(!matches!(of(code), Error::Disk(_)), "{code}");
        }
        assert!(of(Errno::EFBIG).to_string().ends_with("(ulimit -f) allows no larger file"), "{}", of(Errno::EFBIG));
    }
}
