//! Causal attention with the instructions of sm_90a.

use super::attention::{AttentionSaved, Scratch, backward_args, check};
use crate::args::{AttentionTiles, AttentionTilesBwd, View};
use crate::geometry::attention::{self, Shape};
use crate::geometry::attention_sm90::{self as geometry, QUERIES, ROWS};
use crate::kernels::*;
use crate::machine::{Done, Fault, Machine, launch};
use crate::tensor::{TensorMap, Tiles};

/// [`super::attention`] by the kernels for sm_90a.
pub fn attention_sm90(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    check(s, [qkv, starts, o, lse]);
    let (seq, heads, kv_heads, sequences) = (s.seq as u32, s.query as u32, s.kv as u32, s.sequences as u32);
    let kernel = if s.dim == 64 { ATTENTION_SM90_64 } else { ATTENTION_SM90_128 };
    let qkv = heads_of(m, kernel.name, qkv, ROWS, s)?;
    let args = AttentionTiles { starts, o, lse, seq, heads, kv_heads, sequences, qkv };
    // SAFETY: `check` holds the views to the shape, and a map is held to its view.
    unsafe { launch(m, kernel, &args, geometry::forward(s, m.processors())) }
}

/// [`super::attention_bwd`] by the kernels for sm_90a.
pub fn attention_bwd_sm90(
    m: &dyn Machine,
    do_: View,
    saved: AttentionSaved,
    dqkv: View,
    scratch: Scratch,
    s: Shape,
) -> Done {
    let all = backward_args(do_, saved, dqkv, scratch, s);
    let (first, [dkv, dkv_sum, dq]) = if s.dim == 64 {
        let own = [ATTENTION_DKV_SM90_64, ATTENTION_DKV_SUM_SM90_64, ATTENTION_DQ_SM90_64];
        (ATTENTION_STATS_64, own)
    } else {
        let own = [ATTENTION_DKV_SM90_128, ATTENTION_DKV_SUM_SM90_128, ATTENTION_DQ_SM90_128];
        (ATTENTION_STATS_128, own)
    };
    let map = |of, rows| heads_of(m, dkv.name, of, rows, s);
    let args = AttentionTilesBwd {
        starts: all.starts,
        stats: all.stats,
        dqkv,
        sums: all.sums,
        seq: all.seq,
        heads: all.heads,
        kv_heads: all.kv_heads,
        sequences: s.sequences as u32,
        parts: all.parts,
        qkv64: map(all.qkv, QUERIES)?,
        qkv: map(all.qkv, ROWS)?,
        do64: map(do_, QUERIES)?,
        do_: map(do_, ROWS)?,
    };
    // SAFETY: `backward_args` holds the views to the shape, and the scratch to shape and parts; a map is held to its
    // view.
    unsafe {
        launch(m, first, &all, attention::stats(s))?;
        launch(m, dkv, &args, geometry::dkv(s, scratch.parts))?;
        if scratch.parts > 1 {
            launch(m, dkv_sum, &args, geometry::dkv_sum(s))?;
        }
        launch(m, dq, &args, geometry::dq(s, m.processors()))
    }
}

/// The map of the tiles of one head's columns in a matrix of T rows, for this kernel.
fn heads_of(m: &dyn Machine, kernel: &'static str, of: View, rows: usize, s: Shape) -> Result<TensorMap, Fault> {
    let tiles = Tiles { of, cols: of.len() / s.rows(), seq: s.seq, rows, dim: s.dim };
    m.tensor_map(tiles).map_err(|what| Fault { kernel, what, shapes: format!("{tiles:?}") })
}
