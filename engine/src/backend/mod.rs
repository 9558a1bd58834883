//! The interface between the engine and a backend: layer-sized ops and collectives on the matrices of `tensor.rs`.
//! CUDA streams, CUDA events and MPI requests do not appear here.
//!
//! Every tensor is a row-major matrix; heads, sequences and vocabulary ranges are arguments. Ops do not return errors:
//! a wrong shape is a bug and fails an assertion; a device fault is returned by [`Backend::wait_host`], when the
//! results of a step are read.
//!
//! Legend of shapes: T tokens of a micro-batch, D hidden size, F intermediate size, V vocabulary rows of this rank, H
//! query heads, G key/value heads, d head size, C rows of a chunk.

use crate::layout::mesh::GroupKind;
use crate::memory::free_list::Usage;
use std::ops::Range;

mod cached;
mod checks;
mod collectives;
mod experts;
mod op;
mod pending;
mod scratch;
mod span;
mod tensor;

pub use crate::scope::Scope;
pub use cached::{CachedAttention, CachedRows};
pub use checks::{Checks, Origin, all_finite};
pub use collectives::{ChunkedRows, Collectives, Exchanged, Expected};
pub use experts::{Balance, Choices, ClampedGate, GroupBias, Groups, Router, Sorted};
pub use op::{Form, Op, Operands, Work};
pub use pending::Pending;
pub use scratch::Scratch;
pub use span::{Detail, Label, Span, Track};
pub use tensor::{Acc, Act, Elem, Tensor, TensorView, TensorViewMut};

/// The attention heads of this rank, how they score, and the length of a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// H: query heads of this rank.
    pub query: usize,
    /// G: key/value heads of this rank; H is a multiple of G.
    pub kv: usize,
    /// d: elements of a head.
    pub dim: usize,
    /// Rows of one sequence; T is a multiple of it.
    pub seq: usize,
    /// Twice the mean number of positions that a query attends to: `seq`, or less with a window. Only the count of
    /// operations uses it; the positions themselves are in `starts`.
    pub span: usize,
    /// The factor of the scores q k^T: d^-1/2, but in Gemma 2.
    pub scale: f32,
    /// Soft-cap of the scaled scores s: they become cap tanh(s / cap) before the softmax (Gemma 2).
    pub cap: Option<f32>,
}

impl Heads {
    /// Heads whose queries attend to all positions up to their own, with scores scaled by d^-1/2.
    pub fn full(query: usize, kv: usize, dim: usize, seq: usize) -> Heads {
        Heads { query, kv, dim, seq, span: seq, scale: 1.0 / (dim as f32).sqrt(), cap: None }
    }

    /// Columns of the packed projection: `[q_1..q_H | k_1..k_G | v_1..v_G]`, each d wide.
    pub fn qkv_cols(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }

    /// The columns that the time of attention is estimated with. A soft-cap takes two more special-function
    /// instructions for each score, the time of 256 FLOPs of a tensor core on an A100 (16 against 2,048 a cycle), and
    /// so that of 64 more columns of a head in the two products of the forward pass.
    pub fn timed_cols(&self) -> usize {
        let more = if self.cap.is_some() { 64 } else { 0 };
        self.query * (self.dim + more)
    }

    /// Columns of the attention's output, H d.
    pub fn out_cols(&self) -> usize {
        self.query * self.dim
    }
}

/// An RMSNorm (Zhang & Sennrich 2019): y = x * rstd * (offset + w), rstd = 1 / sqrt(mean(x^2) + eps).
pub struct Rms<'a, B: Backend> {
    /// `[1, D]`.
    pub w: &'a Act<B>,
    pub eps: f32,
    /// 0, or 1 where the weights are stored as differences from 1 (Gemma).
    pub offset: f32,
}

/// A LayerNorm (Ba et al. 2016): y = (x - mean) * rstd * w + bias, rstd = 1 / sqrt(var(x) + eps).
pub struct LayerNorm<'a, B: Backend> {
    /// `[1, D]`, as the bias.
    pub w: &'a Act<B>,
    pub bias: &'a Act<B>,
    pub eps: f32,
}

/// RMSNorms of the heads of q and k: one weight for all heads of q and one for all heads of k, `[1, d]` each.
pub struct HeadRms<'a, B: Backend> {
    pub q: &'a Act<B>,
    pub k: &'a Act<B>,
    pub eps: f32,
}

/// The rotary embedding of the rows of a micro-batch (Su et al. 2021, halves layout).
pub struct Rotary<'a, B: Backend> {
    /// cos in the first d/2 columns and sin in the rest, by position: `[longest, d]`.
    pub table: &'a Acc<B>,
    /// The table's row for each row of the micro-batch, `[T, 1]`.
    pub positions: &'a Tensor<B, u32>,
}

/// References are copied whatever the backend is, which a derive would not see.
macro_rules! copied {
    ($($name:ident),*) => {
        $(impl<B: Backend> Clone for $name<'_, B> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<B: Backend> Copy for $name<'_, B> {})*
    };
}
copied!(Rms, LayerNorm, HeadRms, Rotary, Groups, GroupBias);

/// Parameters of the cross-entropy besides logits and targets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xent {
    /// Vocabulary id of the first column that this rank holds.
    pub first: usize,
    /// Coefficient of log(Z)^2.
    pub z_loss: f32,
    /// Soft-cap: the loss is that of cap tanh(logits / cap) (Gemma 2).
    pub cap: Option<f32>,
}

/// The columns of a step's totals `[1, Total::COUNT]`, each a sum over the rows that the losses are computed for.
/// Additional losses append columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Total {
    /// Cross-entropy of the counted targets.
    Loss,
    /// log(Z)^2 of the counted targets.
    ZLoss,
    /// Weights of the targets: the number of counted targets, by which gradients are divided.
    Weight,
    /// The balancing loss of each sequence in each layer with experts.
    AuxLoss,
    /// log(sum exp)^2 of the router's logits of each token in each layer with experts.
    RouterZLoss,
}

impl Total {
    pub const COUNT: usize = 5;
}

/// How a step is judged before it updates anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Largest global L2 norm of the gradient; 0: no clipping.
    pub clip: f32,
    /// Accepted steps over which mean and standard deviation are taken.
    pub window: usize,
    /// Standard deviations above the mean from which on a loss or a gradient norm is a spike; 0: never.
    pub threshold: f32,
    /// Whether a step with a spike updates nothing.
    pub skips: bool,
}

impl Rule {
    /// Elements of the state: the number of steps in it, the place of the next one, and the losses and the gradient
    /// norms of the last `window` accepted steps.
    pub fn state_len(window: usize) -> usize {
        2 + 2 * window
    }
}

/// The judgement of a step, a number in the results of [`Backend::judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    Accepted,
    LossSpike,
    NormSpike,
    /// The loss or the norm is not finite: the step updates nothing, whatever the rule.
    NotFinite,
}

impl Judgement {
    pub const ALL: [Judgement; 4] =
        [Judgement::Accepted, Judgement::LossSpike, Judgement::NormSpike, Judgement::NotFinite];

    /// The judgement of this number, which is its place in [`Judgement::ALL`].
    pub fn of(number: f32) -> Judgement {
        let found = Judgement::ALL.get(number as usize);
        *found.unwrap_or_else(|| panic!("{number} is no judgement"))
    }
}

/// Columns of the result of [`Backend::checksum`].
pub const CHECKSUM_PARTS: usize = 512;

/// The contribution of an element to a checksum: a mix of its bits and its place, by MurmurHash3's finalizer (Appleby
/// 2008), which is a bijection.
pub fn mixed(bits: u32, place: usize) -> u32 {
    let h = bits ^ (place as u32).wrapping_mul(0x9e37_79b9);
    let h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    let h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Hyper-parameters of one AdamW step (Loshchilov & Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f32,
    /// f64, so that 1 - beta is computed before it is rounded to f32.
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f32,
    pub weight_decay: f32,
    /// 1 - beta1^step and 1 - beta2^step.
    pub correction1: f32,
    pub correction2: f32,
    /// Weight decay applies to this many leading elements of the shard.
    pub decayed: usize,
}

/// An asynchronous error of a device or of a collective: where it happened, and what it means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// An operation in flight that a later op must wait for.
pub trait Ticket {
    fn wait(self);
}

/// A copy to the host in flight. Any thread may wait for it.
pub trait HostCopy<T: Elem>: Send + 'static {
    /// Blocks until the copy is complete.
    fn wait(self) -> Result<Vec<T>, Fault>;
}

/// A backend. An op is enqueued on the compute stream. A collective starts, on its group's own stream, after everything
/// that was enqueued before it. [`Pending::wait`] makes the compute stream wait, not the host.
///
/// bf16 rounds each op's output once; sums and statistics are f32. No result depends on the number
/// of threads.
pub trait Backend: Sized + 'static {
    /// Activations and weights.
    type Act: Elem;
    /// A block of memory; dropping it gives it back to the allocator.
    type Mem<T: Elem>;
    type Ticket: Ticket;
    type Group: Collectives<Self>;
    /// See [`Backend::copy_to_host_async`].
    type HostCopy<T: Elem>: HostCopy<T>;
    /// See [`Backend::record_event`].
    type Event: Clone;

    /// Whether ops return when they are enqueued, before they have run. If so, the results of a step are read after the
    /// next step was enqueued. The value is the same on all ranks.
    const RUNS_AHEAD: bool;

    /// Makes a communicator of the ranks `members`, in this order; this rank is one of them. All ranks of the run call
    /// this together, each with the list that contains it. The lists are disjoint.
    fn group(&self, kind: GroupKind, members: &[usize]) -> Self::Group;

    /// The device's name as its vendor gives it; peak figures are looked up by this name.
    fn device(&self) -> String;

    // -- memory --

    /// Memory in use and its peak, including the scratch of ops.
    fn usage(&self) -> Usage;
    /// Bytes of the device's memory that are taken beside the backend's own, by the context, libraries and other
    /// processes; `None` on a host, or where the device does not answer.
    fn taken_by_others(&self) -> Option<usize> {
        None
    }
    /// A matrix with unspecified contents.
    fn alloc<T: Elem>(&self, rows: usize, cols: usize) -> Tensor<Self, T>;
    /// A view of `range` of a block. Dropping it does not free the block.
    ///
    /// # Safety
    /// The view must not outlive the block, nor be written while another view of the same elements exists.
    unsafe fn alias<T: Elem>(mem: &Self::Mem<T>, range: Range<usize>) -> Self::Mem<T>;
    fn upload<T: Elem>(&self, host: &[T], rows: usize, cols: usize) -> Tensor<Self, T>;
    /// Like [`Backend::upload`], but into an existing matrix.
    fn write<T: Elem>(&self, host: &[T], to: &mut Tensor<Self, T>);
    /// Starts a copy to the host of x as it is after all ops enqueued so far. Until the copy is complete, x may be
    /// dropped, or overwritten by [`Backend::adamw`] and [`Backend::write`], but not by any other op.
    fn copy_to_host_async<T: Elem>(&self, x: &Tensor<Self, T>) -> Self::HostCopy<T>;
    /// Blocks until the copy is complete. Returns the first fault since the last call, if there was one.
    fn wait_host<T: Elem>(&self, copy: Self::HostCopy<T>) -> Result<Vec<T>, Fault>;
    /// Numbers of rows, on the host, which waits for them. A dry run takes those of `planned(imbalance)`, where the
    /// most loaded rank gets `imbalance` times the mean; so does a device that is at fault, which the next
    /// [`Backend::wait_host`] returns.
    fn counts_on_host(&self, counts: &Tensor<Self, u32>, planned: impl FnOnce(f64) -> Vec<u32>) -> Vec<u32>;
    fn copy<T: Elem>(&self, x: &Tensor<Self, T>) -> Tensor<Self, T>;
    /// Like [`Backend::copy`], but into an existing matrix.
    fn copy_to<T: Elem>(&self, x: &Tensor<Self, T>, to: &mut Tensor<Self, T>);
    fn zero(&self, x: &mut Acc<Self>);
    /// y = x rounded to the activations' precision, element by element.
    fn round(&self, x: &Acc<Self>, y: &mut Act<Self>);

    /// y = x, element by element.
    fn widen(&self, x: &Act<Self>, y: &mut Acc<Self>);

    /// A number rounded to the activations' precision.
    fn rounded(&self, x: f32) -> f32;

    // -- linear: a [m, k], products in f32, rounded once --

    /// a b^T with b `[n, k]` -> `[m, n]`.
    fn matmul_nt(&self, a: &Act<Self>, b: &Act<Self>) -> Act<Self> {
        let mut out = self.alloc(a.rows(), b.rows());
        self.matmul_nt_into(a, b, &mut out);
        out
    }

    /// a b with b `[k, n]` -> `[m, n]`.
    fn matmul_nn(&self, a: &Act<Self>, b: &Act<Self>) -> Act<Self> {
        let mut out = self.alloc(a.rows(), b.cols());
        self.matmul_nn_into(a, b, &mut out);
        out
    }

    /// Like [`Backend::matmul_nt`], but into an existing matrix.
    fn matmul_nt_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>);
    /// Like [`Backend::matmul_nn`], but into an existing matrix.
    fn matmul_nn_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>);
    /// Number of chunks into which a collective with `rows` rows per rank is split, so that it overlaps with the GEMM
    /// that reads or writes its rows: see [`ChunkedRows`].
    fn comm_chunks(&self, rows: usize) -> usize;
    /// Like [`Backend::matmul_nt_into`], plus bias `[1, n]` in every row; the sum is rounded once.
    fn matmul_nt_bias_into(&self, a: &Act<Self>, b: &Act<Self>, bias: &Act<Self>, out: &mut Act<Self>);
    /// out += a^T b with a `[k, m]`, b `[k, n]`, out `[m, n]`, in f32.
    fn matmul_tn_acc(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Acc<Self>);
    /// x + y, in place of x.
    fn add(&self, x: Act<Self>, y: &Act<Self>) -> Act<Self>;
    /// x + bias `[1, n]` in every row, in place of x.
    fn add_bias(&self, x: Act<Self>, bias: &Act<Self>) -> Act<Self>;
    /// dbias `[1, n]` += the sum of the rows of dy.
    fn bias_bwd(&self, dy: &Act<Self>, dbias: &mut Acc<Self>);
    /// x times a number, in place of x.
    fn scale(&self, x: Act<Self>, factor: f32) -> Act<Self>;

    // -- RMSNorm --

    /// `[T, D]` -> (y `[T, D]`, rstd `[T, 1]`).
    fn rmsnorm(&self, x: &Act<Self>, n: Rms<Self>) -> (Act<Self>, Acc<Self>);
    /// h = x + r (rounded), y = RMSNorm(h): (h, y, rstd).
    fn add_rmsnorm(&self, x: &Act<Self>, r: Act<Self>, n: Rms<Self>) -> (Act<Self>, Act<Self>, Acc<Self>);
    /// y, recomputed from the tensors that forward saved.
    fn rmsnorm_recompute(&self, x: &Act<Self>, rstd: &Acc<Self>, n: Rms<Self>) -> Act<Self>;
    /// Computes dx from dy, and accumulates into dw `[1, D]`.
    fn rmsnorm_bwd(
        &self,
        dy: Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        n: Rms<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self>;
    /// dx + dres: the gradient of the residual stream is added before the result is rounded.
    fn rmsnorm_bwd_add(
        &self,
        dres: &Act<Self>,
        dy: Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        n: Rms<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self>;

    // -- LayerNorm --

    /// `[T, D]` -> (y `[T, D]`, mean and rstd `[T, 2]`).
    fn layernorm(&self, x: &Act<Self>, n: LayerNorm<Self>) -> (Act<Self>, Acc<Self>);
    /// Computes dx from dy, plus `dres` if it is given, and accumulates into dw and dbias, `[1, D]` each.
    fn layernorm_bwd(
        &self,
        dres: Option<&Act<Self>>,
        dy: Act<Self>,
        x: &Act<Self>,
        stats: &Acc<Self>,
        n: LayerNorm<Self>,
        dw_dbias: [&mut Acc<Self>; 2],
    ) -> Act<Self>;

    // -- attention: qkv [T, (H + 2G) d] packed as Heads::qkv_cols says --

    /// Rotates q and k, in place.
    fn rope(&self, qkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self>;
    /// The inverse rotation of the gradients of q and k, in place.
    fn rope_bwd(&self, dqkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self>;
    /// RMSNorm of each head of q and k, then the rotation; rounded once. v is copied.
    fn qk_norm_rope(&self, qkv: &Act<Self>, n: HeadRms<Self>, r: Rotary<Self>, h: Heads) -> Act<Self>;
    /// The gradient of qkv from that of the result of [`Backend::qk_norm_rope`], in place; adds to the gradients of the
    /// weights of q and k, `[1, d]` each.
    fn qk_norm_rope_bwd(
        &self,
        dqkv: Act<Self>,
        qkv: &Act<Self>,
        n: HeadRms<Self>,
        r: Rotary<Self>,
        h: Heads,
        dw: [&mut Acc<Self>; 2],
    ) -> Act<Self>;
    /// o = softmax(s) v with s = q k^T [`Heads::scale`], capped by [`Heads::cap`], causal (Dao 2023): (o `[T, H d]`,
    /// logsumexp `[T, H]`). A query at position t of its sequence attends to the positions `starts[t] ..= t`; `starts`
    /// `[T, 1]` ascends within a sequence and expresses both document boundaries and sliding windows.
    fn attention(&self, qkv: &Act<Self>, starts: &Tensor<Self, u32>, h: Heads) -> (Act<Self>, Acc<Self>);
    /// dqkv from do.
    fn attention_bwd(
        &self,
        do_: &Act<Self>,
        o: &Act<Self>,
        lse: &Acc<Self>,
        qkv: &Act<Self>,
        starts: &Tensor<Self, u32>,
        h: Heads,
    ) -> Act<Self>;
    /// Adds a learned sink to the softmax of each head: one more score, without a value (Xiao et al. 2024; GPT-OSS).
    /// lse' = log(exp(lse) + exp(sink)), o' = o exp(lse - lse'), both in place: o `[T, H d]`, lse `[T, H]`, sinks
    /// `[1, H]`. [`Backend::attention_bwd`] takes the results as they are.
    fn add_sinks(&self, o: Act<Self>, lse: Acc<Self>, sinks: &Act<Self>) -> (Act<Self>, Acc<Self>);
    /// dsinks `[1, H]` -= the sum over the rows of exp(sink - lse') (do . o'), with the results of
    /// [`Backend::add_sinks`].
    fn sinks_bwd(&self, do_: &Act<Self>, o: &Act<Self>, lse: &Acc<Self>, sinks: &Act<Self>, dsinks: &mut Acc<Self>);

    // -- SwiGLU (Shazeer 2020): y = silu(gate) * up --

    /// gate_up `[T, 2F]` = `[gate | up]` -> `[T, F]`.
    fn swiglu(&self, gate_up: &Act<Self>) -> Act<Self>;
    /// `[dgate | dup]` from dy, in place of gate_up.
    fn swiglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self>;

    // -- the same with gelu in its tanh form (Hendrycks & Gimpel 2016): y = gelu(gate) * up --

    /// gate_up `[T, 2F]` = `[gate | up]` -> `[T, F]`.
    fn geglu(&self, gate_up: &Act<Self>) -> Act<Self>;
    /// `[dgate | dup]` from dy, in place of gate_up.
    fn geglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self>;
    /// y = gelu(x).
    fn gelu(&self, x: &Act<Self>) -> Act<Self>;
    /// dx from dy, in place of x.
    fn gelu_bwd(&self, dy: &Act<Self>, x: Act<Self>) -> Act<Self>;

    // -- experts: T tokens choose k of E experts each, R rows that are grouped by expert --

    /// The router's logits in f32: x w^T + bias with x `[T, D]`, w `[E, D]`, bias `[1, E]` -> `[T, E]`.
    fn router_logits(&self, x: &Act<Self>, w: &Act<Self>, bias: Option<&Act<Self>>) -> Acc<Self>;
    /// The experts of each token and their weights, from logits `[T, E]`.
    fn route(&self, logits: &Acc<Self>, r: Router) -> Choices<Self>;
    /// dlogits `[T, E]` from dweights `[T, k]`, plus the gradients of the auxiliary losses. Adds those losses to their
    /// columns of totals `[1, Total::COUNT]`, and the number of choices of each expert to load `[1, E]`.
    fn route_bwd(
        &self,
        dweights: &Acc<Self>,
        logits: &Acc<Self>,
        choices: &Choices<Self>,
        r: Router,
        balance: Balance<Self>,
        sums: [&mut Acc<Self>; 2],
    ) -> Acc<Self>;
    /// Sorts choices `[T, k]` of `experts` experts.
    fn sort_choices(&self, choices: &Tensor<Self, u32>, experts: usize) -> Sorted<Self>;
    /// Row i of y is row `index[i] / per` of x: x `[m, c]`, index `[n, 1]` -> y `[n, c]`.
    fn take_rows<T: Elem>(&self, x: &Tensor<Self, T>, index: &Tensor<Self, u32>, per: usize, y: &mut Tensor<Self, T>);
    /// Row t of the result is the sum of the rows `places[t, ..]` of x, in this order and rounded once: x `[T k, D]`,
    /// places `[T, k]` -> `[T, D]`.
    fn sum_rows(&self, x: &Act<Self>, places: &Tensor<Self, u32>) -> Act<Self>;
    /// y = x w^T, plus a bias if there is one, each row with those of its expert: x `[R, K]`, w `[E N, K]` -> y
    /// `[R, N]`. The sum is rounded once.
    fn grouped_nt(
        &self,
        x: &Act<Self>,
        w: &Act<Self>,
        bias: Option<GroupBias<Self>>,
        g: Groups<Self>,
        y: &mut Act<Self>,
    );
    /// y = x w, each row with the weights of its expert: x `[R, N]`, w `[E N, K]` -> y `[R, K]`.
    fn grouped_nn(&self, x: &Act<Self>, w: &Act<Self>, g: Groups<Self>, y: &mut Act<Self>);
    /// For each expert: dw += dy^T x over its rows, in f32: dy `[R, N]`, x `[R, K]`, dw `[E N, K]`.
    fn grouped_tn_acc(&self, dy: &Act<Self>, x: &Act<Self>, g: Groups<Self>, dw: &mut Acc<Self>);
    /// dbias `[1, E n]` += the sum of the rows of each expert, times their weights, in the columns of the bias: dy
    /// `[R, N]`.
    fn grouped_bias_bwd(&self, dy: &Act<Self>, bias: GroupBias<Self>, g: Groups<Self>, dbias: &mut Acc<Self>);
    /// dweights `[R, 1]` += dy . bias, the gradient of the bias's weights: dy `[R, N]`.
    fn grouped_bias_dot(&self, dy: &Act<Self>, bias: GroupBias<Self>, g: Groups<Self>, dweights: &mut Acc<Self>);
    /// y = weight * silu(gate) * up: gate_up `[R, 2F]` = `[gate | up]`, weights `[R, 1]` -> y `[R, F]`.
    fn swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>);
    /// `[dgate | dup]` from dy `[R, F]`, in place of gate_up, and dweights `[R, 1]`.
    fn swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    );
    /// The same with [`ClampedGate`]: y = weight * (up + 1) gate sigmoid(1.702 gate), of clamped gates and values.
    fn clamped_swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>);
    /// See [`Backend::swiglu_weighted_bwd`].
    fn clamped_swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    );

    // -- embedding: the table holds the ids `first .. first + V` --

    /// ids `[T, 1]`, table `[V, D]` -> `[T, D]`. An id outside of the table gives a row of zeros.
    fn embed(&self, ids: &Tensor<Self, u32>, table: &Act<Self>, first: usize) -> Act<Self>;
    /// dtable `[V, D]` += the rows of dy, added in row order.
    fn embed_bwd(&self, ids: &Tensor<Self, u32>, dy: &Act<Self>, first: usize, dtable: &mut Acc<Self>);

    // -- cross-entropy, over the vocabulary columns of this rank --

    /// C: the number of rows of logits that are computed at once if this rank holds `cols` columns of the vocabulary.
    fn logits_rows(&self, cols: usize) -> usize;

    /// logits `[C, V]`, targets `[C, 1]` -> `[C, 3]`: max, sum of exp(logit - max), the target's
    /// logit (-inf where another rank holds it), all of capped logits if there is a soft-cap.
    fn xent_stats(&self, logits: &Act<Self>, targets: &Tensor<Self, u32>, x: Xent) -> Acc<Self>;
    /// The ranks' statistics `[n C, 3]`, rank after rank, combined in rank order -> `[C, 3]`.
    fn xent_combine(&self, stats: &Acc<Self>, ranks: usize) -> Acc<Self>;
    /// totals `[1, Total::COUNT]` += (sum of w loss, sum of w log(Z)^2, sum of w) over the rows, in the columns of
    /// [`Total`].
    fn xent_totals(&self, stats: &Acc<Self>, weights: &Acc<Self>, totals: &mut Acc<Self>);
    /// The gradient of `sum of w (loss + z_loss log(Z)^2)`, in place of the logits.
    fn xent_grad(
        &self,
        logits: Act<Self>,
        stats: &Acc<Self>,
        targets: &Tensor<Self, u32>,
        weights: &Acc<Self>,
        x: Xent,
    ) -> Act<Self>;

    // -- flat buckets: the elements `ranges` of x [n, 1], one range after another --

    /// A copy of these elements, `[sum of the lengths, 1]`.
    fn pick(&self, x: &Acc<Self>, ranges: &[Range<usize>]) -> Acc<Self>;
    /// Overwrites these elements of x with `part`.
    fn put(&self, part: &Acc<Self>, ranges: &[Range<usize>], x: &mut Acc<Self>);

    /// The parts of the checksum of the elements `range` of x, `[1, CHECKSUM_PARTS]`, which add up to it modulo 2^32.
    /// An element adds [`mixed`] of its bits and of its place in the range, so that one element with other bits always
    /// changes the checksum.
    fn checksum<T: Elem>(&self, x: &Tensor<Self, T>, range: Range<usize>) -> Tensor<Self, u32>;

    // -- optimizer --

    /// out `[1, 1]` += sum of squares of g over the range, in a fixed order.
    fn sum_squares(&self, g: &Acc<Self>, range: Range<usize>, out: &mut Acc<Self>);
    /// Computes, from the squared norm `[1, 1]` of the summed gradients and the totals of the loss, `[1, 3]` = (norm of
    /// the gradient of the mean loss, factor for the summed gradients, [`Judgement`]). The factor is
    /// `min(1, clip / (norm + 1e-6)) / tokens`, or `1 / tokens` if clip is 0, and NaN where the step is to update
    /// nothing. A value is a spike if it lies above mean + threshold * population standard deviation of the `state`
    /// `[1, Rule::state_len]`, once that has `window` steps; an accepted step with counted targets replaces the oldest
    /// one in it.
    fn judge(&self, square: &Acc<Self>, totals: &Acc<Self>, state: &mut Acc<Self>, rule: Rule) -> Acc<Self>;
    /// One AdamW step on a shard: g is scaled by `factor[0, 1]`; master, m and v are updated; `weights` is the new
    /// master, rounded. Nothing changes if the factor is NaN.
    #[allow(clippy::too_many_arguments)]
    fn adamw(
        &self,
        g: &Acc<Self>,
        factor: &Acc<Self>,
        master: &mut Acc<Self>,
        m: &mut Acc<Self>,
        v: &mut Acc<Self>,
        weights: &mut Act<Self>,
        hp: AdamW,
    );

    // -- numbers that are not finite --

    /// From now on the result of every op is looked at, which waits for each of them.
    fn begin_checks(&self);
    /// Stops looking. Returns the first op whose result was not finite, if there was one.
    fn end_checks(&self) -> Option<Origin>;

    // -- profiling --

    /// Runs `work` in a named scope: faults and profiles name the scope of an op.
    fn scope<T>(&self, part: Scope, work: impl FnOnce() -> T) -> T;
    /// Records an event that completes when everything enqueued so far is done.
    fn record_event(&self) -> Self::Event;
    /// Seconds between two events. Blocks until the later one has completed.
    fn elapsed(&self, from: &Self::Event, to: &Self::Event) -> f64;
    /// Starts to record spans of this detail.
    fn begin_trace(&self, detail: Detail);
    /// Stops recording and returns the spans. Blocks until the recorded work is done.
    fn end_trace(&self) -> Vec<Span>;
}
