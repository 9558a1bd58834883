//! The emulator's own tests, and each kernel compared with its op on the CPU. One target, so that it is linked once.
//!
//! Modules named `exhaustive` or `campaign` are left out of `make test`; `make test-all` runs everything.

mod adamw;
mod alike;
mod attention;
mod attention_sm90;
mod bias;
mod clamped;
mod common;
mod dispatch;
mod embedding;
mod grouped;
mod grouped_bias;
mod hopper;
mod layernorm;
mod mutants;
mod norm;
mod pointwise;
mod probes;
mod probes_hopper;
mod ptx;
mod qk_norm;
mod reports;
mod router;
mod sinks;
mod windows;
mod xent;
