//! The reference backend: every op in plain Rust, on the cores of this rank.
