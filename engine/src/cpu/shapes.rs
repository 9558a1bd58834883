//! Tensors as slices, and the checks at the door of each op.

use super::ops::matmul::Operand;
use super::{Cpu, Float};
use crate::backend::{Act, Elem, Heads, Tensor};

pub(super) fn data<A: Float, T: Elem>(x: &Tensor<Cpu<A>, T>) -> &[T] {
    x.mem.as_slice()
}

pub(super) fn data_mut<A: Float, T: Elem>(x: &mut Tensor<Cpu<A>, T>) -> &mut [T] {
    x.mem.as_mut_slice()
}

pub(super) fn plain<A: Float>(x: &Act<Cpu<A>>) -> Operand<'_, A> {
    Operand::new(data(x), x.rows(), x.cols())
}

pub(super) fn transposed<A: Float>(x: &Act<Cpu<A>>) -> Operand<'_, A> {
    plain(x).t()
}

/// Asserts that a tensor has the shape that an op needs of it.
#[track_caller]
pub(super) fn expect<A: Float, T: Elem>(what: &str, x: &Tensor<Cpu<A>, T>, rows: usize, cols: usize) {
    assert_eq!(x.shape(), (rows, cols), "the shape of {what}");
}

#[track_caller]
pub(super) fn expect_heads<A: Float>(qkv: &Act<Cpu<A>>, h: Heads) {
    assert_eq!(qkv.cols(), h.qkv_cols(), "columns of qkv for {h:?}");
    assert_eq!((qkv.rows() % h.seq, h.query % h.kv, h.dim % 2), (0, 0, 0), "{} rows for {h:?}", qkv.rows());
}
