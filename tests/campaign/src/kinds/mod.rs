//! The kinds of faults.

mod commands;
mod damage;
mod ends;
mod files;
mod others;

use crate::process::Verdict;
use crate::site::Site;

/// A kind of fault: it disturbs what runs at the site, and checks what is left.
pub struct Kind {
    /// For the command line.
    pub name: &'static str,
    /// For the table.
    pub says: &'static str,
    /// How many of all faults are of this kind, in proportion.
    pub weight: usize,
    pub run: fn(&mut Site) -> Verdict,
}

const fn kind(name: &'static str, weight: usize, says: &'static str, run: fn(&mut Site) -> Verdict) -> Kind {
    Kind { name, says, weight, run }
}

/// The weights are the numbers of tries in an earlier campaign from outside.
pub const KINDS: &[Kind] = &[
    kind("kill-rank", 75, "SIGKILL of one rank", ends::kill_rank),
    kind("kill-all", 28, "SIGKILL of mpirun, or of mpirun and all ranks", ends::kill_all),
    kind("stop-for-ever", 10, "SIGSTOP for ever", ends::stop_for_ever),
    kind("stop-3s", 7, "SIGSTOP for 3 s", ends::stop_for_a_while),
    kind("signal", 26, "TERM, INT, HUP, USR1, USR2 to a rank; USR1, USR2 to mpirun", ends::signal),
    kind("signal-mpirun", 6, "TERM, INT to mpirun", ends::signal_to_mpirun),
    kind("kill-slow-save", 30, "SIGKILL of one rank in a slow checkpoint write", ends::kill_in_slow_save),
    kind("kill-op", 104, "SIGKILL at a file operation", files::kill),
    kind("power", 88, "power lost at a file operation: all data that was not flushed is gone", files::lose_power),
    kind("full-disk", 18, "a disk of 7 sizes is full, and has room later", files::full_disk),
    kind("no-space", 60, "ENOSPC from a file operation on", files::no_space),
    kind("bad-disk", 43, "EIO, ESTALE from a file operation on", files::bad_disk),
    kind("transient", 79, "ENOSPC, EIO, ESTALE at a few file operations", files::fail_for_a_while),
    kind("inform", 12, "ENOSPC, EIO at files that only inform", files::fail_to_inform),
    kind("slow-op", 10, "a file operation that takes up to 3 s", files::take_long),
    kind("stuck-op", 5, "a file operation that never returns", files::never_return),
    kind("export", 88, "checkpoint export: killed, without power, on a full disk", commands::export),
    kind("import", 87, "checkpoint import: the same", commands::import),
    kind("tokenize", 87, "data tokenize: the same", commands::tokenize),
    kind("tokenizer", 88, "tokenizer train: the same", commands::tokenizer),
    kind("report", 87, "report: the same", commands::report),
    kind("flip", 115, "a bit flipped in one of 13 files", damage::flip),
    kind("cut", 68, "one of 13 files truncated, emptied, zeroed", damage::cut),
    kind("misplace", 16, "files of checkpoints swapped, deleted, foreign", damage::misplace),
    kind("tokens", 12, "the token file changed under the run", damage::change_tokens),
    kind("other-run", 8, "one rank sees another state of the checkpoints", others::see_other_checkpoints),
    kind("other-inputs", 7, "one rank sees other weights or tokens, or none", others::see_other_inputs),
    kind("limit", 34, "ulimit -v, -n, -u; closed or full stderr, closed stdout, no TMPDIR", others::limit),
    kind("limit-shm", 8, "full /dev/shm", others::limit_shared_memory),
    kind("weight", 36, "NaN, infinity, 3e38 in one weight", others::spoil_weight),
    kind("rate", 16, "absurd learning rates", others::set_absurd_rate),
];
