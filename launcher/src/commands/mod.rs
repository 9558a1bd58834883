//! One file per subcommand: its flags, and how it uses the engine.

pub mod checkpoint;
pub mod compare;
pub mod data;
pub mod dry_run;
pub mod evaluate;
mod expand;
mod expand_vocab;
mod inspect;
pub mod kernels;
pub mod parity;
pub mod plan;
pub mod report;
pub mod status;
mod texts;
mod tokenize;
pub mod tokenizer;
mod tokenizer_train;
pub mod topology;
pub mod train;
mod upcycle;

use clap::builder::RangedU64ValueParser;
use engine::config::{Config, MOST_RANKS};
use engine::error::Result;
use engine::layout::mesh::Mesh;

/// The valid values of `--ranks`.
fn ranks_flag() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MOST_RANKS)
}

/// The mesh of a command that also runs without mpirun; `flag` is the value of `--ranks`, for messages.
fn mesh(config: &Config, flag: Option<usize>, ranks: usize) -> Result<Mesh> {
    match flag {
        Some(flag) => config.mesh_as_asked(ranks, &format!("--ranks {flag}")),
        None => config.mesh(ranks),
    }
}
