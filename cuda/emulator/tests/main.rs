//! One target, one link: the emulator's own tests, and each kernel against its op on the CPU.

mod adamw;
mod attention;
mod common;
mod embedding;
mod mutants;
mod norm;
mod pointwise;
mod reports;
mod xent;
