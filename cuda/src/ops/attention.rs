//! Causal attention with grouped key/value heads.

use super::attention_sm90::{attention_bwd_sm90, attention_sm90};
use crate::args::{Attention, AttentionBwd, View};
pub use crate::geometry::attention::Shape;
use crate::geometry::attention::{self as geometry, HEAD_DIMS};
use crate::kernels::*;
use crate::machine::{Done, Machine, Target, launch};

/// o `[T, H d]` and the logsumexp `[T, H]` of qkv `[T, (H + 2G) d]`, where a query sees the positions from its
/// `starts` `[T]` on: these ascend within a sequence, and none lies behind its query. Matrices of bf16 begin at
/// multiples of 16 bytes.
pub fn attention(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    match m.target() {
        Target::Sm80 => attention_sm80(m, qkv, starts, o, lse, s),
        Target::Sm90a => attention_sm90(m, qkv, starts, o, lse, s),
    }
}

/// dqkv `[T, (H + 2G) d]` from do `[T, H d]`.
pub fn attention_bwd(
    m: &dyn Machine,
    do_: View,
    saved: AttentionSaved,
    dqkv: View,
    scratch: Scratch,
    s: Shape,
) -> Done {
    match m.target() {
        Target::Sm80 => attention_bwd_sm80(m, do_, saved, dqkv, scratch, s),
        Target::Sm90a => attention_bwd_sm90(m, do_, saved, dqkv, scratch, s),
    }
}

/// [`attention`] by the kernels that run everywhere.
pub fn attention_sm80(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
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
    aligned(&[qkv, o]);
}

/// What kernels copy by sixteen bytes begins where sixteen begin.
fn aligned(views: &[View]) {
    let beside = views.iter().map(|view| view.at() % 16).collect::<Vec<_>>();
    assert!(beside.iter().all(|&b| b == 0), "views lie {beside:?} beside a multiple of 16 bytes");
}

/// What forward read and made: qkv, o, lse, starts.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSaved {
    pub qkv: View,
    pub o: View,
    pub lse: View,
    pub starts: View,
}

/// What the kernels of the backward pass hand on: [`stats_len`](geometry::stats_len) u32, and
/// [`sums_len`](geometry::sums_len) f32 of so many `parts` of the heads ([`geometry::parts`] says how many are best).
#[derive(Debug, Clone, Copy)]
pub struct Scratch {
    pub stats: View,
    pub sums: View,
    pub parts: usize,
}

/// The arguments of the backward pass, held to the shape and to the scratch's parts.
pub(super) fn backward_args(do_: View, saved: AttentionSaved, dqkv: View, scratch: Scratch, s: Shape) -> AttentionBwd {
    let AttentionSaved { qkv, o, lse, starts } = saved;
    let Scratch { stats, sums, parts } = scratch;
    check(s, [qkv, starts, o, lse]);
    check(s, [dqkv, starts, do_, lse]);
    assert!(parts > 0 && (s.query / s.kv).is_multiple_of(parts), "{parts} parts of the heads of {s:?}");
    let lengths = (geometry::stats_len(s), geometry::sums_len(s, parts));
    assert_eq!((stats.len(), sums.len()), lengths, "scratch of {parts} parts of {s:?}");
    aligned(&[stats, sums]);
    let (seq, heads, kv_heads, parts) = (s.seq as u32, s.query as u32, s.kv as u32, parts as u32);
    AttentionBwd { qkv, do_, o, starts, lse, dqkv, stats, sums, seq, heads, kv_heads, parts }
}

/// [`attention_bwd`] by the kernels that run everywhere.
pub fn attention_bwd_sm80(
    m: &dyn Machine,
    do_: View,
    saved: AttentionSaved,
    dqkv: View,
    scratch: Scratch,
    s: Shape,
) -> Done {
    let args = backward_args(do_, saved, dqkv, scratch, s);
    let [first, dkv, dkv_sum, dq] = if s.dim == 64 {
        [ATTENTION_STATS_64, ATTENTION_DKV_64, ATTENTION_DKV_SUM_64, ATTENTION_DQ_64]
    } else {
        [ATTENTION_STATS_128, ATTENTION_DKV_128, ATTENTION_DKV_SUM_128, ATTENTION_DQ_128]
    };
    // SAFETY: `backward_args` holds the views to the shape, and the scratch to shape and parts.
    unsafe {
        launch(m, first, &args, geometry::stats(s))?;
        launch(m, dkv, &args, geometry::dkv(s, scratch.parts))?;
        if scratch.parts > 1 {
            launch(m, dkv_sum, &args, geometry::dkv_sum(s))?;
        }
        launch(m, dq, &args, geometry::dq(s))
    }
}
