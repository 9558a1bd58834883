//! The flight recorder: a small ring of a rank's last operations, and counters of what it has started and finished, in
//! memory that the other processes of its host can read. A watchdog reads it when nothing moves any more, without the
//! help of the rank that hangs, of MPI or of NCCL.
//!
//! ```text
//! main thread ── step, scope, op, start, wait ──> Recorder ──> its slot of the host's SharedRings
//! other threads ── tick (long work goes on) ─────────┘                │
//!                                    Snapshot of every rank <─────────┘──> verdict: which rank is missing in what
//! ```
//!
//! Records are relaxed stores of a few words: nothing waits, and a reader of a live slot may see a record half written.

mod record;
mod ring;
mod shared;
mod snapshot;
mod verdict;

pub use record::{Channel, Record};
pub use ring::{Recorder, Waiting, Working};
pub use shared::{SharedRings, Slot};
pub use snapshot::{Blocked, Condition, Snapshot, lives};
pub use verdict::{Cause, Seen, Verdict, verdict};
