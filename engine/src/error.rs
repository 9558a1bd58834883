//! The two ways a run ends early that are not bugs: the user's mistake and a failure of the run.
//! A bug is an `assert!` with both numbers; it never becomes an [`Error`].

/// Why the program stops. The launcher turns it into the exit code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's mistake: names the file, key or flag, the value, and what would be right. Exit 2.
    #[error("{0}")]
    User(String),
    /// The run failed through no mistake of the user's (a full disk, a device fault). Exit 1.
    #[error("{0}")]
    Run(String),
}

pub type Result<T> = std::result::Result<T, Error>;

/// `1 rank`, `3 ranks`.
pub fn counted(n: usize, noun: &str) -> String {
    let plural = if noun.ends_with("ch") { "es" } else { "s" };
    format!("{n} {noun}{}", if n == 1 { "" } else { plural })
}

impl Error {
    pub fn user(what: impl Into<String>) -> Self {
        Error::User(what.into())
    }

    pub fn run(what: impl Into<String>) -> Self {
        Error::Run(what.into())
    }

    /// A file that could not be read or written. A path that is not there is the user's mistake.
    pub fn io(path: &std::path::Path, error: std::io::Error) -> Self {
        use std::io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let what = format!("{}: {error}", path.display());
        match error.kind() {
            NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidData => Error::User(what),
            _ => Error::Run(what),
        }
    }

    pub fn exit_code(&self) -> i32 {
        match self {
            Error::User(_) => 2,
            Error::Run(_) => 1,
        }
    }
}
