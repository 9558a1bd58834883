//! One target, one link: the emulator's own tests, and each kernel against its op on the CPU.

mod adamw;
mod alike;
mod attention;
mod attention_sm90;
mod common;
mod embedding;
mod hopper;
mod mutants;
mod norm;
mod pointwise;
mod probes;
mod probes_hopper;
mod reports;
mod xent;
