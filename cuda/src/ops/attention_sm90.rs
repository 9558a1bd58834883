//! Causal attention with the instructions of sm_90a.

use super::attention::check;
use crate::args::{AttentionTiles, View};
use crate::geometry::attention::Shape;
use crate::geometry::attention_sm90::{self as geometry, ROWS};
use crate::kernels::{ATTENTION_SM90_64, ATTENTION_SM90_128};
use crate::machine::{Done, Fault, Machine, launch};
use crate::tensor::{TensorMap, Tiles};

/// As [`super::attention`].
pub fn attention_sm90(m: &dyn Machine, qkv: View, starts: View, o: View, lse: View, s: Shape) -> Done {
    check(s, [qkv, starts, o, lse]);
    let (seq, heads, kv_heads, sequences) = (s.seq as u32, s.query as u32, s.kv as u32, s.sequences as u32);
    let kernel = if s.dim == 64 { ATTENTION_SM90_64 } else { ATTENTION_SM90_128 };
    let qkv = tiles(m, kernel.name, Tiles { of: qkv, cols: s.qkv_cols(), seq: s.seq, rows: ROWS, dim: s.dim })?;
    let args = AttentionTiles { starts, o, lse, seq, heads, kv_heads, sequences, qkv };
    // SAFETY: `check` holds the views to the shape, and `Tiles` its map to the view.
    unsafe { launch(m, kernel, &args, geometry::forward(s, m.processors())) }
}

/// The map of these tiles, for this kernel.
fn tiles(m: &dyn Machine, kernel: &'static str, tiles: Tiles) -> Result<TensorMap, Fault> {
    m.tensor_map(tiles).map_err(|what| Fault { kernel, what, shapes: format!("{tiles:?}") })
}
