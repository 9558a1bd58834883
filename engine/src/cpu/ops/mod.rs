//! The ops on slices. Each file has one op, or one pair of forward and backward, with its formula; the plain loops that
//! specify them are in `cpu/tests/reference.rs`.

pub mod adamw;
pub mod attention;
pub mod attention_bwd;
pub mod attention_cached;
pub mod bias;
pub mod checksum;
pub mod elementwise;
pub mod embed;
pub mod experts;
pub mod gated;
pub mod gelu;
pub mod grouped;
pub mod judge;
pub mod layernorm;
pub mod matmul;
pub mod norm;
pub mod qk_norm;
pub mod rope;
pub mod sinks;
mod small;
pub mod swiglu;
pub mod xent;

/// Rows that make a task of about this many elements: large enough to be worth handing out, small
/// enough that two threads finish together.
fn task_rows(cols: usize) -> usize {
    (32 * 1024 / cols.max(1)).max(1)
}
