//! Causal attention with grouped key/value heads.

use crate::args::{Attention, View};
pub use crate::geometry::attention::Shape;
use crate::geometry::attention::{self as geometry, HEAD_DIMS};
use crate::kernels::{ATTENTION_64, ATTENTION_128};
use crate::machine::{Done, Machine, launch};

/// o `[T, H d]` and the logsumexp `[T, H]` of qkv `[T, (H + 2G) d]`, where a query sees the positions from its
/// `starts` `[T]` on.
pub fn attention(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    check(s, [qkv, starts, o, lse]);
    let (seq, heads, kv_heads) = (s.seq as u32, s.query as u32, s.kv as u32);
    let args = Attention { qkv, starts, o, lse, seq, heads, kv_heads, unused: 0 };
    let kernel = if s.dim == 64 { ATTENTION_64 } else { ATTENTION_128 };
    // SAFETY: `check` holds the views to the shape.
    unsafe { launch(m, kernel, &args, geometry::forward(s)) }
}

/// The views are as long as the shape says, and the shape is one that the kernels take.
pub(super) fn check(s: Shape, [qkv, starts, o, lse]: [View; 4]) {
    assert!(HEAD_DIMS.contains(&s.dim), "heads of {}, not of {HEAD_DIMS:?}", s.dim);
    assert!(s.kv > 0 && s.query.is_multiple_of(s.kv) && s.rows() > 0, "attention over {s:?}");
    assert!(s.rows() < 1 << 31, "attention over {} rows", s.rows());
    let expected = [s.qkv_cols(), 1, s.query * s.dim, s.query].map(|cols| s.rows() * cols);
    assert_eq!([qkv, starts, o, lse].map(|view| view.len()), expected, "qkv, starts, o, lse of {s:?}");
}
