//! Standard output.

use engine::error::{Error, Result};

/// The result of writing to standard output. Whoever closed the pipe has seen enough: that ends the program without a
/// complaint.
pub fn or_broken_pipe(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.map_err(|e| Error::run(format!("standard output: {e}"))),
    }
}
