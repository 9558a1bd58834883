//! A rank of the CPU backend: its cores, its memory, and what its ops report.

use super::{Float, Progress};
use crate::backend::{Acc, Act, Backend, Checks, Elem, Fault, HeadRms, Heads, HostCopy, Rms, Rotary, Tensor};
use crate::cpu::ops;
use crate::cpu::ops::matmul::Operand;
use crate::cpu::pool::Pool;
use crate::cpu::spans::Spans;
use crate::cpu::workers::Workers;
use crate::flight::Recorder;
use crate::mpi::Comm;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

/// The backend of one rank: its cores and its memory. `A` is the type of activations and weights.
pub struct Cpu<A: Float> {
    pub(super) pool: Rc<Pool>,
    workers: Workers,
    pub(super) progress: Progress,
    /// All ranks in the mesh's order; `None` without other ranks.
    pub(super) world: Option<Rc<Comm>>,
    /// See [`Backend::comm_chunks`].
    pub(super) pieces: usize,
    pub(super) spans: Spans,
    pub(super) recorder: Arc<Recorder>,
    pub(super) checks: Checks,
    act: PhantomData<A>,
}

impl<A: Float> Cpu<A> {
    /// A backend without other ranks that computes on `threads` cores, including the calling thread's.
    pub fn new(threads: usize) -> Self {
        let (pool, workers, progress) = (Rc::default(), Workers::new(threads), Progress::default());
        let (spans, recorder, checks) = (Spans::default(), Arc::default(), Checks::default());
        Cpu { pool, workers, progress, world: None, pieces: 1, spans, recorder, checks, act: PhantomData }
    }

    /// The backend of one of the ranks of `world`.
    pub fn of(world: Rc<Comm>, threads: usize) -> Self {
        Cpu { recorder: world.recorder(), world: Some(world), ..Cpu::new(threads) }
    }

    /// Splits a collective that overlaps with a matmul into this number of chunks, as the CUDA backend does. On the CPU
    /// this is no faster; the results are bit-identical.
    pub fn in_pieces(self, pieces: usize) -> Self {
        Cpu { pieces, ..self }
    }

    /// The elements of x, row-major.
    pub fn download<T: Elem>(&self, x: &Tensor<Self, T>) -> Vec<T> {
        data(x).to_vec()
    }

    /// The threads for the op of this name. Open MPI makes progress only inside its calls, so every op begins with one.
    pub(super) fn workers(&self, op: &'static str) -> &Workers {
        self.recorder.op(op);
        self.progress.poke();
        &self.workers
    }

    /// The result of the op of this name is there.
    pub(super) fn made<T: Elem>(&self, op: &'static str, result: &Tensor<Self, T>) {
        self.checks.made(op, || self.download(result));
    }

    pub(super) fn scalars(&self, values: &[f32]) -> Acc<Self> {
        self.upload(values, 1, values.len())
    }
}

/// A copy to the host, which the CPU backend makes at once.
pub struct Copied<T>(pub(super) Vec<T>);

impl<T: Elem> HostCopy<T> for Copied<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        Ok(self.0)
    }
}

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

/// Asserts that an op was given a tensor of the right shape.
#[track_caller]
pub(super) fn expect<A: Float, T: Elem>(what: &str, x: &Tensor<Cpu<A>, T>, rows: usize, cols: usize) {
    assert_eq!(x.shape(), (rows, cols), "the shape of {what}");
}

#[track_caller]
pub(super) fn expect_heads<A: Float>(qkv: &Act<Cpu<A>>, h: Heads) {
    assert_eq!(qkv.cols(), h.qkv_cols(), "columns of qkv for {h:?}");
    assert_eq!((qkv.rows() % h.seq, h.query % h.kv, h.dim % 2), (0, 0, 0), "{} rows for {h:?}", qkv.rows());
}

/// The weight of an RMSNorm, as the ops take it.
pub(super) fn params<A: Float>(n: Rms<'_, Cpu<A>>) -> ops::norm::Params<'_, A> {
    ops::norm::Params { weight: data(n.w), offset: n.offset, eps: n.eps }
}

#[track_caller]
pub(super) fn expect_rotary<A: Float>(r: Rotary<'_, Cpu<A>>, rows: usize, h: Heads) {
    expect("positions", r.positions, rows, 1);
    assert_eq!(r.table.cols(), h.dim, "columns of the rotary table");
}

/// The weights of the norms of heads and the rotation, as the ops take them.
pub(super) fn head_params<'a, A: Float>(
    n: HeadRms<'a, Cpu<A>>,
    r: Rotary<'a, Cpu<A>>,
    rows: usize,
    h: Heads,
) -> ops::qk_norm::Params<'a, A> {
    expect_rotary(r, rows, h);
    expect("w of q", n.q, 1, h.dim);
    expect("w of k", n.k, 1, h.dim);
    let (table, positions) = (data(r.table), data(r.positions));
    ops::qk_norm::Params { q: data(n.q), k: data(n.k), eps: n.eps, table, positions, h }
}

/// The backward pass of RMSNorm, which adds the residual's gradient `dres` if it is given.
pub(super) fn norm_gradients<A: Float>(
    b: &Cpu<A>,
    dres: Option<&[A]>,
    dy: &mut Act<Cpu<A>>,
    x: &Act<Cpu<A>>,
    rstd: &Acc<Cpu<A>>,
    n: Rms<'_, Cpu<A>>,
    dw: &mut Acc<Cpu<A>>,
) {
    expect("dy", dy, x.rows(), x.cols());
    expect("rstd", rstd, x.rows(), 1);
    expect("w", n.w, 1, x.cols());
    expect("dw", dw, 1, x.cols());
    let saved = ops::norm::Saved { x: data(x), rstd: data(rstd), w: params(n) };
    ops::norm::rmsnorm_bwd(b.workers("rmsnorm_bwd"), &b.pool, dres, data_mut(dy), saved, data_mut(dw));
    b.made("rmsnorm_bwd", dy);
    b.made("rmsnorm_bwd", dw);
}
