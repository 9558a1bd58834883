//! Messages on standard error, which never hold up a run: where nobody reads them, they are left out.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use std::os::fd::AsFd;

/// Bytes that a pipe takes at once without mixing them with those of others (`PIPE_BUF`), and for which it has room
/// whenever it can be written at all.
const AT_ONCE: usize = 4096;
/// The time in milliseconds that a reader has to make room.
const PATIENCE: u16 = 200;

/// Prints lines and a newline, in one write if they are short, so that lines of several ranks do not mix. Standard
/// error may be closed, or a full pipe that nobody reads: a run does not end or wait because of that.
pub fn print(lines: &str) {
    let (text, stderr) = (format!("{lines}\n"), std::io::stderr());
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut ready, PATIENCE) {
            Err(Errno::EINTR) => continue,
            Ok(1) => {}
            _ => return,
        }
        match nix::unistd::write(stderr.as_fd(), &rest[..rest.len().min(AT_ONCE)]) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(_) => return,
            Ok(written) => rest = &rest[written..],
        }
    }
}
