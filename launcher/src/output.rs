//! Standard output.

use engine::error::{Error, Result};

/// The result of writing to standard output. If the reader has closed the pipe, it has seen enough, and the program
/// ends without an error.
pub fn or_broken_pipe(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|e| Error::run(format!("standard output: {e}"))),
    }
}
