//! The contract's tensors and numbers, as ops take them.

use super::Cuda;
use crate::args::{Step, View};
use crate::geometry::attention;
use crate::ops;
use engine::backend::{AdamW, Elem, Heads, Tensor};

/// A matrix, as kernels take it.
pub(super) fn view<T: Elem>(x: &Tensor<Cuda, T>) -> View {
    // SAFETY: the block lives while the tensor is borrowed, and after that only what comes later on the compute stream,
    // or waits for it, may use the memory; `&mut` says that nothing else uses what is written.
    unsafe { View::new(x.mem.at(), x.len()) }
}

/// Heads as the kernels of attention take them.
pub(super) fn shape(rows: usize, h: Heads) -> attention::Shape {
    assert_eq!((rows % h.seq, h.query % h.kv), (0, 0), "{rows} rows for {h:?}");
    attention::Shape { query: h.query, kv: h.kv, dim: h.dim, seq: h.seq, sequences: rows / h.seq }
}

/// How all heads of q and k turn.
pub(super) fn turn(cols: usize, h: Heads, sign: f32) -> ops::Turn {
    assert_eq!(cols, h.qkv_cols(), "columns of qkv for {h:?}");
    ops::Turn { heads: h.query + h.kv, dim: h.dim, cols, seq: h.seq, sign }
}

pub(super) fn step(hp: AdamW) -> Step {
    let AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed } = hp;
    Step { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed }
}
