//! The CPU backend: every op on the cores of this rank, in f32 or in bf16. The formulas are specified by the plain f64
//! loops of `tests/reference.rs`, against which each op is tested; `ops/` has the optimized versions on slices, and
//! this file calls them with the data of tensors and checks the shapes.

pub mod cores;
mod float;
mod group;
mod kernel;
mod ops;
mod pool;
mod scratch;
mod simd;
mod spans;
mod tiles;
mod workers;

#[cfg(test)]
mod tests;

pub use float::Float;
use group::Watch;
pub use group::{MpiGroup, MpiTicket, Progress};
pub use pool::Block;
pub use scratch::CpuScratch;

use crate::backend::{
    Acc, Act, AdamW, Backend, CHECKSUM_PARTS, Checks, Detail, Elem, Fault, Heads, HostCopy, Label, Origin, Rule, Scope,
    Span, Tensor, Total, Track, Xent,
};
use crate::flight::Recorder;
use crate::layout::mesh::GroupKind;
use crate::memory::free_list::Usage;
use crate::mpi::Comm;
use ops::matmul::Operand;
use pool::Pool;
use spans::Spans;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use workers::Workers;

/// The backend of one rank: its cores and its memory. `A` is the type of activations and weights.
pub struct Cpu<A: Float> {
    pool: Rc<Pool>,
    workers: Workers,
    progress: Progress,
    /// All ranks in the mesh's order; `None` without other ranks.
    world: Option<Rc<Comm>>,
    /// See [`Backend::comm_chunks`].
    pieces: usize,
    spans: Spans,
    recorder: Arc<Recorder>,
    checks: Checks,
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
    fn workers(&self, op: &'static str) -> &Workers {
        self.recorder.op(op);
        self.progress.poke();
        &self.workers
    }

    /// The result of the op of this name is there.
    fn made<T: Elem>(&self, op: &'static str, result: &Tensor<Self, T>) {
        self.checks.made(op, || self.download(result));
    }

    fn scalars(&self, values: &[f32]) -> Acc<Self> {
        self.upload(values, 1, values.len())
    }

    /// The backward pass of RMSNorm, which adds the residual's gradient `dres` if it is given.
    fn norm_gradients(
        &self,
        dres: Option<&[A]>,
        dy: &mut Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        w: &Act<Self>,
        dw: &mut Acc<Self>,
    ) {
        expect("dy", dy, x.rows(), x.cols());
        expect("rstd", rstd, x.rows(), 1);
        expect("w", w, 1, x.cols());
        expect("dw", dw, 1, x.cols());
        let saved = ops::norm::Saved { x: data(x), rstd: data(rstd), w: data(w) };
        ops::norm::rmsnorm_bwd(self.workers("rmsnorm_bwd"), &self.pool, dres, data_mut(dy), saved, data_mut(dw));
        self.made("rmsnorm_bwd", dy);
        self.made("rmsnorm_bwd", dw);
    }
}

impl<A: Float> Backend for Cpu<A> {
    type Act = A;
    type Mem<T: Elem> = Block<T>;
    type Ticket = MpiTicket;
    type Group = MpiGroup;
    type HostCopy<T: Elem> = Copied<T>;
    type Event = Instant;
    const RUNS_AHEAD: bool = false;

    fn group(&self, kind: GroupKind, members: &[usize]) -> MpiGroup {
        let watch =
            Watch { progress: self.progress.clone(), spans: self.spans.clone(), recorder: self.recorder.clone() };
        MpiGroup::new(self.world.as_deref(), kind, members, watch)
    }

    fn device(&self) -> String {
        cores::model()
    }

    fn usage(&self) -> Usage {
        self.pool.usage()
    }

    fn alloc<T: Elem>(&self, rows: usize, cols: usize) -> Tensor<Self, T> {
        Tensor::from_mem(self.pool.take(rows * cols), rows, cols)
    }

    unsafe fn alias<T: Elem>(mem: &Block<T>, range: Range<usize>) -> Block<T> {
        // SAFETY: the caller's promise is the one that `Block::alias` asks for.
        unsafe { mem.alias(range) }
    }

    fn upload<T: Elem>(&self, host: &[T], rows: usize, cols: usize) -> Tensor<Self, T> {
        assert_eq!(host.len(), rows * cols, "elements of a {rows} x {cols} matrix");
        let mut x = self.alloc(rows, cols);
        self.write(host, &mut x);
        x
    }

    fn write<T: Elem>(&self, host: &[T], to: &mut Tensor<Self, T>) {
        assert_eq!(host.len(), to.len(), "elements of a matrix {:?}", to.shape());
        ops::elementwise::copy(self.workers("upload"), host, data_mut(to));
    }

    fn copy_to_host_async<T: Elem>(&self, x: &Tensor<Self, T>) -> Copied<T> {
        Copied(self.download(x))
    }

    fn wait_host<T: Elem>(&self, copy: Copied<T>) -> Result<Vec<T>, Fault> {
        copy.wait()
    }

    fn copy<T: Elem>(&self, x: &Tensor<Self, T>) -> Tensor<Self, T> {
        self.upload(data(x), x.rows(), x.cols())
    }

    fn copy_to<T: Elem>(&self, x: &Tensor<Self, T>, to: &mut Tensor<Self, T>) {
        self.write(data(x), to);
    }

    fn zero(&self, x: &mut Acc<Self>) {
        ops::elementwise::zero(self.workers("zero"), data_mut(x));
    }

    fn round(&self, x: &Acc<Self>, y: &mut Act<Self>) {
        expect("y", y, x.rows(), x.cols());
        ops::elementwise::round(self.workers("round"), data(x), data_mut(y));
    }

    fn widen(&self, x: &Act<Self>, y: &mut Acc<Self>) {
        assert_eq!(x.len(), y.len(), "elements of a matrix {:?}", y.shape());
        ops::elementwise::widen(self.workers("widen"), data(x), data_mut(y));
    }

    fn matmul_nt_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        assert_eq!(a.cols(), b.cols(), "columns of {:?} and {:?}", a.shape(), b.shape());
        expect("a b^T", out, a.rows(), b.rows());
        ops::matmul::matmul(self.workers("matmul_nt"), &self.pool, plain(a), transposed(b), data_mut(out));
        self.made("matmul_nt", out);
    }

    fn matmul_nn_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        assert_eq!(a.cols(), b.rows(), "columns of {:?}, rows of {:?}", a.shape(), b.shape());
        expect("a b", out, a.rows(), b.cols());
        ops::matmul::matmul(self.workers("matmul_nn"), &self.pool, plain(a), plain(b), data_mut(out));
        self.made("matmul_nn", out);
    }

    fn comm_chunks(&self, rows: usize) -> usize {
        self.pieces.clamp(1, rows.max(1))
    }

    fn matmul_tn_acc(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Acc<Self>) {
        assert_eq!(a.rows(), b.rows(), "rows of {:?} and {:?}", a.shape(), b.shape());
        expect("a^T b", out, a.cols(), b.cols());
        ops::matmul::matmul_acc(self.workers("matmul_tn_acc"), &self.pool, transposed(a), plain(b), data_mut(out));
        self.made("matmul_tn_acc", out);
    }

    fn add(&self, mut x: Act<Self>, y: &Act<Self>) -> Act<Self> {
        expect("y", y, x.rows(), x.cols());
        ops::elementwise::add(self.workers("add"), data_mut(&mut x), data(y));
        self.made("add", &x);
        x
    }

    fn rmsnorm(&self, x: &Act<Self>, w: &Act<Self>, eps: f32) -> (Act<Self>, Acc<Self>) {
        expect("w", w, 1, x.cols());
        let (mut y, mut rstd) = (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1));
        ops::norm::rmsnorm(self.workers("rmsnorm"), data(x), data(w), eps, data_mut(&mut y), data_mut(&mut rstd));
        self.made("rmsnorm", &y);
        (y, rstd)
    }

    fn add_rmsnorm(&self, x: &Act<Self>, r: Act<Self>, w: &Act<Self>, eps: f32) -> (Act<Self>, Act<Self>, Acc<Self>) {
        expect("r", &r, x.rows(), x.cols());
        expect("w", w, 1, x.cols());
        let (mut h, mut y, mut rstd) = (r, self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1));
        let (to_h, to_y, to_rstd) = (data_mut(&mut h), data_mut(&mut y), data_mut(&mut rstd));
        ops::norm::add_rmsnorm(self.workers("add_rmsnorm"), data(x), to_h, data(w), eps, to_y, to_rstd);
        self.made("add_rmsnorm", &h);
        self.made("add_rmsnorm", &y);
        (h, y, rstd)
    }

    fn rmsnorm_recompute(&self, x: &Act<Self>, rstd: &Acc<Self>, w: &Act<Self>) -> Act<Self> {
        expect("rstd", rstd, x.rows(), 1);
        expect("w", w, 1, x.cols());
        let mut y = self.alloc(x.rows(), x.cols());
        ops::norm::rmsnorm_recompute(self.workers("rmsnorm_again"), data(x), data(rstd), data(w), data_mut(&mut y));
        y
    }

    fn rmsnorm_bwd(
        &self,
        mut dy: Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        w: &Act<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self> {
        self.norm_gradients(None, &mut dy, x, rstd, w, dw);
        dy
    }

    fn rmsnorm_bwd_add(
        &self,
        dres: &Act<Self>,
        mut dy: Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        w: &Act<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self> {
        expect("dres", dres, x.rows(), x.cols());
        self.norm_gradients(Some(data(dres)), &mut dy, x, rstd, w, dw);
        dy
    }

    fn rope(&self, mut qkv: Act<Self>, table: &Acc<Self>, positions: &Tensor<Self, u32>, h: Heads) -> Act<Self> {
        expect_heads(&qkv, h);
        expect("positions", positions, qkv.rows(), 1);
        assert_eq!(table.cols(), h.dim, "columns of the rotary table");
        ops::rope::rope(self.workers("rope"), data_mut(&mut qkv), data(table), data(positions), h);
        self.made("rope", &qkv);
        qkv
    }

    fn rope_bwd(&self, mut dqkv: Act<Self>, table: &Acc<Self>, positions: &Tensor<Self, u32>, h: Heads) -> Act<Self> {
        expect_heads(&dqkv, h);
        expect("positions", positions, dqkv.rows(), 1);
        assert_eq!(table.cols(), h.dim, "columns of the rotary table");
        ops::rope::rope_bwd(self.workers("rope_bwd"), data_mut(&mut dqkv), data(table), data(positions), h);
        self.made("rope_bwd", &dqkv);
        dqkv
    }

    fn attention(&self, qkv: &Act<Self>, starts: &Tensor<Self, u32>, h: Heads) -> (Act<Self>, Acc<Self>) {
        expect_heads(qkv, h);
        expect("starts", starts, qkv.rows(), 1);
        let (mut o, mut lse) = (self.alloc(qkv.rows(), h.out_cols()), self.alloc(qkv.rows(), h.query));
        let (to_o, to_lse) = (data_mut(&mut o), data_mut(&mut lse));
        ops::attention::attention(self.workers("attention"), &self.pool, data(qkv), data(starts), h, to_o, to_lse);
        self.made("attention", &o);
        (o, lse)
    }

    fn attention_bwd(
        &self,
        do_: &Act<Self>,
        o: &Act<Self>,
        lse: &Acc<Self>,
        qkv: &Act<Self>,
        starts: &Tensor<Self, u32>,
        h: Heads,
    ) -> Act<Self> {
        expect_heads(qkv, h);
        expect("do", do_, qkv.rows(), h.out_cols());
        expect("o", o, qkv.rows(), h.out_cols());
        expect("logsumexp", lse, qkv.rows(), h.query);
        expect("starts", starts, qkv.rows(), 1);
        let mut dqkv = self.alloc(qkv.rows(), qkv.cols());
        let saved = ops::attention_bwd::Saved { qkv: data(qkv), o: data(o), lse: data(lse), starts: data(starts) };
        ops::attention_bwd::attention_bwd(
            self.workers("attention_bwd"),
            &self.pool,
            data(do_),
            saved,
            h,
            data_mut(&mut dqkv),
        );
        self.made("attention_bwd", &dqkv);
        dqkv
    }

    fn swiglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        let f = gate_up.cols() / 2;
        expect("[gate | up]", gate_up, gate_up.rows(), 2 * f);
        let mut y = self.alloc(gate_up.rows(), f);
        ops::swiglu::swiglu(self.workers("swiglu"), data(gate_up), f, data_mut(&mut y));
        self.made("swiglu", &y);
        y
    }

    fn swiglu_bwd(&self, dy: &Act<Self>, mut gate_up: Act<Self>) -> Act<Self> {
        expect("[gate | up]", &gate_up, dy.rows(), 2 * dy.cols());
        ops::swiglu::swiglu_bwd(self.workers("swiglu_bwd"), data(dy), dy.cols(), data_mut(&mut gate_up));
        self.made("swiglu_bwd", &gate_up);
        gate_up
    }

    fn embed(&self, ids: &Tensor<Self, u32>, table: &Act<Self>, first: usize) -> Act<Self> {
        let mut y = self.alloc(ids.len(), table.cols());
        ops::embed::embed(self.workers("embed"), data(ids), data(table), table.cols(), first, data_mut(&mut y));
        self.made("embed", &y);
        y
    }

    fn embed_bwd(&self, ids: &Tensor<Self, u32>, dy: &Act<Self>, first: usize, dtable: &mut Acc<Self>) {
        expect("dy", dy, ids.len(), dtable.cols());
        let cols = dtable.cols();
        ops::embed::embed_bwd(self.workers("embed_bwd"), data(ids), data(dy), cols, first, data_mut(dtable));
        self.made("embed_bwd", dtable);
    }

    fn logits_rows(&self, cols: usize) -> usize {
        scratch::logits_rows(cols)
    }

    fn xent_stats(&self, logits: &Act<Self>, targets: &Tensor<Self, u32>, first: usize) -> Acc<Self> {
        expect("targets", targets, logits.rows(), 1);
        let mut stats = self.alloc(logits.rows(), 3);
        let (cols, to) = (logits.cols(), data_mut(&mut stats));
        ops::xent::xent_stats(self.workers("xent_stats"), data(logits), cols, data(targets), first, to);
        stats
    }

    fn xent_combine(&self, stats: &Acc<Self>, ranks: usize) -> Acc<Self> {
        expect("the ranks' statistics", stats, stats.rows() / ranks * ranks, 3);
        let mut combined = self.alloc(stats.rows() / ranks, 3);
        ops::xent::xent_combine(data(stats), ranks, data_mut(&mut combined));
        combined
    }

    fn xent_totals(&self, stats: &Acc<Self>, weights: &Acc<Self>, totals: &mut Acc<Self>) {
        expect("statistics", stats, weights.len(), 3);
        expect("totals", totals, 1, Total::COUNT);
        ops::xent::xent_totals(data(stats), data(weights), data_mut(totals));
        self.made("xent_totals", totals);
    }

    fn xent_grad(
        &self,
        mut logits: Act<Self>,
        stats: &Acc<Self>,
        targets: &Tensor<Self, u32>,
        weights: &Acc<Self>,
        x: Xent,
    ) -> Act<Self> {
        expect("statistics", stats, logits.rows(), 3);
        expect("targets", targets, logits.rows(), 1);
        expect("weights", weights, logits.rows(), 1);
        let rows = ops::xent::Rows { stats: data(stats), targets: data(targets), weights: data(weights) };
        let cols = logits.cols();
        ops::xent::xent_grad(self.workers("xent_grad"), data_mut(&mut logits), cols, rows, x);
        self.made("xent_grad", &logits);
        logits
    }

    fn pick(&self, x: &Acc<Self>, ranges: &[Range<usize>]) -> Acc<Self> {
        let mut part = self.alloc(ranges.iter().map(Range::len).sum(), 1);
        ops::elementwise::pick(data(x), ranges, data_mut(&mut part));
        part
    }

    fn put(&self, part: &Acc<Self>, ranges: &[Range<usize>], x: &mut Acc<Self>) {
        expect("the part", part, ranges.iter().map(Range::len).sum(), 1);
        ops::elementwise::put(data(part), ranges, data_mut(x));
    }

    fn checksum<T: Elem>(&self, x: &Tensor<Self, T>, range: Range<usize>) -> Tensor<Self, u32> {
        let mut parts = self.alloc(1, CHECKSUM_PARTS);
        ops::checksum::checksum(self.workers("checksum"), &data(x)[range], data_mut(&mut parts));
        parts
    }

    fn sum_squares(&self, g: &Acc<Self>, range: Range<usize>, out: &mut Acc<Self>) {
        data_mut(out)[0] += ops::adamw::sum_squares(self.workers("sum_squares"), &data(g)[range]) as f32;
    }

    fn judge(&self, square: &Acc<Self>, totals: &Acc<Self>, state: &mut Acc<Self>, rule: Rule) -> Acc<Self> {
        expect("the squared norm", square, 1, 1);
        expect("totals", totals, 1, Total::COUNT);
        expect("the state", state, 1, Rule::state_len(rule.window));
        self.recorder.op("judge");
        self.scalars(&ops::judge::judge(data(square)[0], data(totals), data_mut(state), rule))
    }

    fn adamw(
        &self,
        g: &Acc<Self>,
        factor: &Acc<Self>,
        master: &mut Acc<Self>,
        m: &mut Acc<Self>,
        v: &mut Acc<Self>,
        weights: &mut Act<Self>,
        hp: AdamW,
    ) {
        expect("factor", factor, 1, 3);
        let lens = [g.len(), m.len(), v.len(), weights.len()];
        assert_eq!(lens, [master.len(); 4], "elements of g, m, v and the weights for master {:?}", master.shape());
        if data(factor)[1].is_nan() {
            return;
        }
        let state = ops::adamw::State { master: data_mut(master), m: data_mut(m), v: data_mut(v) };
        ops::adamw::adamw(self.workers("adamw"), data(g), data(factor)[1], state, hp, data_mut(weights));
    }

    fn begin_checks(&self) {
        self.checks.begin();
    }

    fn end_checks(&self) -> Option<Origin> {
        self.checks.end()
    }

    fn scope<T>(&self, part: Scope, work: impl FnOnce() -> T) -> T {
        self.recorder.scope(part);
        self.checks.enter(part);
        self.spans.around(Detail::of(part), Track::Parts, || Label::Scope(part), work)
    }

    fn record_event(&self) -> Instant {
        Instant::now()
    }

    fn elapsed(&self, from: &Instant, to: &Instant) -> f64 {
        to.duration_since(*from).as_secs_f64()
    }

    fn begin_trace(&self, detail: Detail) {
        self.spans.begin(detail);
    }

    fn end_trace(&self) -> Vec<Span> {
        self.spans.end()
    }
}

/// A copy to the host, which the CPU backend makes at once.
pub struct Copied<T>(Vec<T>);

impl<T: Elem> HostCopy<T> for Copied<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        Ok(self.0)
    }
}

fn data<A: Float, T: Elem>(x: &Tensor<Cpu<A>, T>) -> &[T] {
    x.mem.as_slice()
}

fn data_mut<A: Float, T: Elem>(x: &mut Tensor<Cpu<A>, T>) -> &mut [T] {
    x.mem.as_mut_slice()
}

fn plain<A: Float>(x: &Act<Cpu<A>>) -> Operand<'_, A> {
    Operand::new(data(x), x.rows(), x.cols())
}

fn transposed<A: Float>(x: &Act<Cpu<A>>) -> Operand<'_, A> {
    plain(x).t()
}

/// Asserts that an op was given a tensor of the right shape.
#[track_caller]
fn expect<A: Float, T: Elem>(what: &str, x: &Tensor<Cpu<A>, T>, rows: usize, cols: usize) {
    assert_eq!(x.shape(), (rows, cols), "the shape of {what}");
}

#[track_caller]
fn expect_heads<A: Float>(qkv: &Act<Cpu<A>>, h: Heads) {
    assert_eq!(qkv.cols(), h.qkv_cols(), "columns of qkv for {h:?}");
    assert_eq!((qkv.rows() % h.seq, h.query % h.kv, h.dim % 2), (0, 0, 0), "{} rows for {h:?}", qkv.rows());
}
