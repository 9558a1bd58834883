//! One file a subcommand: its flags and what it does with the engine.

pub mod checkpoint;
pub mod data;
pub mod dry_run;
pub mod evaluate;
pub mod kernels;
pub mod parity;
pub mod tokenizer;
pub mod topology;
pub mod train;
