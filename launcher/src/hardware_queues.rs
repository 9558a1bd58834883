//! The hardware queues of the GPU, over which the CUDA driver deals a process's streams: eight by default, fewer than
//! the streams of a rank with all kinds of groups. Streams that share a queue hold up each other, and ranks that wait
//! for each other then wait for ever (`cuda/src/backend/queues.rs`).

use std::ffi::OsString;

/// The driver reads it when it is initialized.
const VARIABLE: &str = "CUDA_DEVICE_MAX_CONNECTIONS";
const MOST: &str = "32";

/// Asks for the most queues, unless the user has set a number. Called first in `main`.
pub fn request() {
    if asked().is_none() {
        // SAFETY: `main` calls this before any other thread exists that could read the environment.
        unsafe { std::env::set_var(VARIABLE, MOST) };
    }
}

/// A line for the log of a run on GPUs.
pub fn note() -> String {
    let queues = asked().unwrap_or_default();
    format!("{VARIABLE}={}: hardware queues for a rank's streams", queues.to_string_lossy())
}

fn asked() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|value| !value.is_empty())
}
