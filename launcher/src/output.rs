//! Standard output and standard error.

use engine::error::{Error, Result};
pub use engine::stderr::print as to_stderr;

/// The result of writing to standard output. If the reader has closed the pipe, it has seen enough, and the program
/// ends without an error.
pub fn or_broken_pipe(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|e| Error::run(format!("standard output: {e}"))),
    }
}

/// Formats a line and prints it to standard error ([`to_stderr`]).
macro_rules! say {
    ($($part:tt)*) => { $crate::output::to_stderr(&format!($($part)*)) };
}

pub(crate) use say;
