//! Variables by which a run sets up the CUDA driver and NCCL. The user's own values stay.
//!
//! The driver deals a process's streams over hardware queues: eight by default, fewer than the streams of a rank with
//! all kinds of groups. Streams that share a queue hold up each other, and ranks that wait for each other then wait for
//! ever (`cuda/src/backend/queues.rs`). NCCL, from 2.22 on, connects ranks when it first uses an algorithm, and takes
//! device memory then: after a run has planned what is left.

use std::ffi::OsString;

/// Variables, their values, and what they do.
const SETTINGS: [(&str, &str, &str); 2] = [
    ("CUDA_DEVICE_MAX_CONNECTIONS", "32", "hardware queues for the streams of a rank"),
    ("NCCL_RUNTIME_CONNECT", "0", "0: NCCL connects all ranks at the start"),
];

/// Sets the variables that the user has not set. Called first in `main`.
pub fn request() {
    for (name, value, _) in SETTINGS.iter().filter(|(name, ..)| asked(name).is_none()) {
        // SAFETY: `main` calls this before any other thread exists that could read the environment.
        unsafe { std::env::set_var(name, value) };
    }
}

/// A line for the log of a run on GPUs.
pub fn note() -> String {
    let shown = |(name, _, what): &(&str, &str, &str)| {
        format!("{name}={} ({what})", asked(name).unwrap_or_default().to_string_lossy())
    };
    SETTINGS.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn asked(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
