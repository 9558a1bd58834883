//! Products of some rows of a matrix, block after block.

use super::ops::matmul::{Operand, matmul};
use super::shapes::{data, data_mut, transposed};
use super::{Cpu, Float};
use crate::backend::{Act, Backend, Blocks};

/// The product's rows become the rows `rows` of `out`.
pub(super) fn matmul_nt_to<A: Float>(
    cpu: &Cpu<A>,
    a: &Act<Cpu<A>>,
    b: &Act<Cpu<A>>,
    rows: Blocks,
    out: &mut Act<Cpu<A>>,
) {
    let (k, n) = (a.cols(), b.rows());
    assert_eq!((a.rows(), b.cols(), out.cols()), (rows.rows(), k, n), "a product into {rows:?}");
    for (i, to) in rows.ranges().enumerate() {
        let from = Operand::new(&data(a)[i * rows.each * k..][..rows.each * k], rows.each, k);
        let to = &mut data_mut(out)[to.start * n..to.end * n];
        matmul(cpu.workers(), &cpu.pool, from, transposed(b), to);
    }
}

/// The product of the rows `rows` of `a`.
pub(super) fn matmul_nt_of<A: Float>(cpu: &Cpu<A>, a: &Act<Cpu<A>>, rows: Blocks, b: &Act<Cpu<A>>) -> Act<Cpu<A>> {
    assert_eq!(a.cols(), b.cols(), "columns of {:?} and {:?}", a.shape(), b.shape());
    let (k, n) = (a.cols(), b.rows());
    let mut out = cpu.alloc(rows.rows(), n);
    for (from, to) in rows.ranges().zip(data_mut(&mut out).chunks_mut((rows.each * n).max(1))) {
        let from = Operand::new(&data(a)[from.start * k..from.end * k], rows.each, k);
        matmul(cpu.workers(), &cpu.pool, from, transposed(b), to);
    }
    out
}
