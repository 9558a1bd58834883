//! The engine's `Backend` on a CUDA device: ops launch kernels on the compute stream, collectives call NCCL on the
//! stream of their kind of group, and the host waits for neither.
//!
//! All blocks lie in one arena. Their addresses follow from the order of allocations alone, so a dry run with
//! [`CudaScratch`] lays out exactly what the run will. A freed block may be reused at once: its next use comes later on
//! the compute stream, and for other streams a `Pending` owns the block, or `Rank::add_read` has noted the read.

mod calls;
mod experts;
mod group;
mod host_copy;
mod link;
mod memory;
mod open;
mod pending;
mod queues;
mod rank;
mod scratch;

pub use group::{NcclGroup, NcclTicket};
pub use host_copy::Copied;
pub use memory::Block;
pub use open::{Tuning, product_of};
pub use rank::{CommOptions, Error};
pub use scratch::CudaScratch;

use crate::blas::Form;
use crate::device::{Event, Timing};
use crate::ops;
use crate::tensor::View;
use calls::{head_norms, norm, rope_shape, step, view};
use engine::backend::{
    Acc, Act, AdamW, Backend, Balance, CHECKSUM_PARTS, Choices, Detail, Elem, Fault, GroupBias, Groups, HeadRms, Heads,
    Label, LayerNorm, Origin, Rms, Rotary, Router, Rule, Scope, Scratch, Sorted, Span, Tensor, Track, Xent,
};
use engine::layout::mesh::GroupKind;
use engine::memory::free_list::{Allocator, Usage};
use half::bf16;
use rank::Rank;
use scratch::shape;
use std::ops::Range;
use std::rc::Rc;

/// The backend of one rank.
pub struct Cuda(Rc<Rank>);

impl Backend for Cuda {
    type Act = bf16;
    type Mem<T: Elem> = Block<T>;
    type Ticket = NcclTicket;
    type Group = NcclGroup;
    type HostCopy<T: Elem> = Copied<T>;
    type Event = Option<Rc<Event>>;
    const RUNS_AHEAD: bool = true;

    fn group(&self, kind: GroupKind, members: &[usize]) -> NcclGroup {
        NcclGroup::new(&self.0, kind, members)
    }

    fn device(&self) -> String {
        self.0.device.info().name.clone()
    }

    fn usage(&self) -> Usage {
        self.0.allocator.borrow().usage()
    }

    fn taken_by_others(&self) -> Option<usize> {
        let (free, total) = self.memory().ok()?;
        Some(total.saturating_sub(free + self.0.arena_bytes()))
    }

    fn alloc<T: Elem>(&self, rows: usize, cols: usize) -> Tensor<Self, T> {
        Tensor::from_mem(Block::take(&self.0, rows * cols), rows, cols)
    }

    unsafe fn alias<T: Elem>(mem: &Block<T>, range: Range<usize>) -> Block<T> {
        // SAFETY: both functions have the same contract.
        unsafe { mem.alias(range) }
    }

    fn upload<T: Elem>(&self, host: &[T], rows: usize, cols: usize) -> Tensor<Self, T> {
        let mut x = self.alloc(rows, cols);
        self.write(host, &mut x);
        x
    }

    fn write<T: Elem>(&self, host: &[T], to: &mut Tensor<Self, T>) {
        assert_eq!(host.len(), to.len(), "elements of a matrix {:?}", to.shape());
        self.0.must(host_copy::write(&self.0, bytemuck::cast_slice(host), &to.mem));
    }

    fn copy_to_host_async<T: Elem>(&self, x: &Tensor<Self, T>) -> Copied<T> {
        Copied::start(&self.0, &x.mem)
    }

    fn wait_host<T: Elem>(&self, copy: Copied<T>) -> Result<Vec<T>, Fault> {
        self.0.wait_for(&copy)?;
        self.0.first_fault()?;
        Ok(copy.elements())
    }

    /// A fault is recorded.
    fn counts_on_host(&self, counts: &Tensor<Self, u32>, planned: impl FnOnce(f64) -> Vec<u32>) -> Vec<u32> {
        self.wait_host(self.copy_to_host_async(counts)).unwrap_or_else(|_| planned(1.0))
    }

    fn copy<T: Elem>(&self, x: &Tensor<Self, T>) -> Tensor<Self, T> {
        let mut y = self.alloc(x.rows(), x.cols());
        self.copy_to(x, &mut y);
        y
    }

    fn copy_to<T: Elem>(&self, x: &Tensor<Self, T>, to: &mut Tensor<Self, T>) {
        assert_eq!(x.len(), to.len(), "a copy of {:?} to {:?}", x.shape(), to.shape());
        self.0.must(self.0.device.copy_within(x.mem.at(), to.mem.at(), size_of::<T>() * x.len()));
    }

    fn zero(&self, x: &mut Acc<Self>) {
        self.note(ops::zero(self.machine(), view(x)));
    }

    fn round(&self, x: &Acc<Self>, y: &mut Act<Self>) {
        self.note(ops::round(self.machine(), view(x), view(y)));
    }

    fn widen(&self, x: &Act<Self>, y: &mut Acc<Self>) {
        self.note(ops::widen(self.machine(), view(x), view(y)));
    }

    fn rounded(&self, x: f32) -> f32 {
        bf16::from_f32(x).to_f32()
    }

    fn matmul_nt_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        self.product(Form::Nt, a, b, out);
    }

    fn matmul_nt_bias_into(&self, a: &Act<Self>, b: &Act<Self>, bias: &Act<Self>, out: &mut Act<Self>) {
        let product = self.about_to_multiply(Form::NtBias, a, b, out);
        self.note(self.0.blas().run_with_bias(product, view(a), view(b), view(bias), view(out)));
    }

    fn matmul_nn_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        self.product(Form::Nn, a, b, out);
    }

    fn comm_chunks(&self, rows: usize) -> usize {
        self.0.scratch.comm_chunks(rows)
    }

    fn matmul_tn_acc(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Acc<Self>) {
        self.product(Form::TnAcc, a, b, out);
    }

    fn add(&self, x: Act<Self>, y: &Act<Self>) -> Act<Self> {
        self.note(ops::add(self.machine(), view(&x), view(y)));
        self.made("add", &x);
        x
    }

    fn add_bias(&self, x: Act<Self>, bias: &Act<Self>) -> Act<Self> {
        self.note(ops::add_bias(self.machine(), view(&x), view(bias)));
        self.made("add_bias", &x);
        x
    }

    fn bias_bwd(&self, dy: &Act<Self>, dbias: &mut Acc<Self>) {
        let parts = self.scratch_of::<f32>(ops::bias_parts(dy.rows(), dy.cols(), self.machine().processors()));
        self.note(ops::bias_bwd(self.machine(), view(dy), view(dbias), view(&parts)));
        self.made("bias_bwd", dbias);
    }

    fn scale(&self, x: Act<Self>, factor: f32) -> Act<Self> {
        self.note(ops::scale(self.machine(), view(&x), factor));
        self.made("scale", &x);
        x
    }

    fn rmsnorm(&self, x: &Act<Self>, n: Rms<Self>) -> (Act<Self>, Acc<Self>) {
        let (y, rstd) = (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1));
        self.note(ops::rmsnorm(self.machine(), view(x), View::NONE, norm(n), view(&y), view(&rstd)));
        self.made("rmsnorm", &y);
        (y, rstd)
    }

    fn add_rmsnorm(&self, x: &Act<Self>, r: Act<Self>, n: Rms<Self>) -> (Act<Self>, Act<Self>, Acc<Self>) {
        let (y, rstd) = (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1));
        self.note(ops::rmsnorm(self.machine(), view(x), view(&r), norm(n), view(&y), view(&rstd)));
        self.made("add_rmsnorm", &r);
        self.made("add_rmsnorm", &y);
        (r, y, rstd)
    }

    fn rmsnorm_recompute(&self, x: &Act<Self>, rstd: &Acc<Self>, n: Rms<Self>) -> Act<Self> {
        let y = self.alloc(x.rows(), x.cols());
        self.note(ops::rmsnorm_recompute(self.machine(), view(x), view(rstd), norm(n), view(&y)));
        y
    }

    fn rmsnorm_bwd(
        &self,
        mut dy: Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        n: Rms<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self> {
        self.norm_gradients(View::NONE, &mut dy, x, rstd, n, dw);
        dy
    }

    fn rmsnorm_bwd_add(
        &self,
        dres: &Act<Self>,
        mut dy: Act<Self>,
        x: &Act<Self>,
        rstd: &Acc<Self>,
        n: Rms<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self> {
        self.norm_gradients(view(dres), &mut dy, x, rstd, n, dw);
        dy
    }

    fn layernorm(&self, x: &Act<Self>, n: LayerNorm<Self>) -> (Act<Self>, Acc<Self>) {
        let (y, stats) = (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 2));
        let weights = ops::LayerWeights { w: view(n.w), bias: view(n.bias), eps: n.eps };
        self.note(ops::layernorm(self.machine(), view(x), weights, view(&y), view(&stats)));
        self.made("layernorm", &y);
        (y, stats)
    }

    fn layernorm_bwd(
        &self,
        dres: Option<&Act<Self>>,
        dy: Act<Self>,
        x: &Act<Self>,
        stats: &Acc<Self>,
        n: LayerNorm<Self>,
        [dw, dbias]: [&mut Acc<Self>; 2],
    ) -> Act<Self> {
        let parts = self.scratch_of::<f32>(ops::layernorm_parts(x.rows(), x.cols(), self.machine().processors()));
        let saved = ops::LayerBwd { dres: dres.map_or(View::NONE, view), x: view(x), stats: view(stats), w: view(n.w) };
        self.note(ops::layernorm_bwd(self.machine(), saved, view(&dy), [view(dw), view(dbias)], view(&parts)));
        self.made("layernorm_bwd", &dy);
        [dw, dbias].into_iter().for_each(|gradient| self.made("layernorm_bwd", gradient));
        dy
    }

    fn rope(&self, qkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        let shape = rope_shape(qkv.cols(), h, 1.0);
        self.note(ops::rope(self.machine(), view(&qkv), view(r.table), view(r.positions), shape));
        self.made("rope", &qkv);
        qkv
    }

    fn rope_bwd(&self, dqkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        let shape = rope_shape(dqkv.cols(), h, -1.0);
        self.note(ops::rope(self.machine(), view(&dqkv), view(r.table), view(r.positions), shape));
        self.made("rope_bwd", &dqkv);
        dqkv
    }

    fn qk_norm_rope(&self, qkv: &Act<Self>, n: HeadRms<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        let y = self.alloc(qkv.rows(), qkv.cols());
        self.note(ops::qk_norm_rope(self.machine(), view(qkv), head_norms(n, r), h, view(&y)));
        self.made("qk_norm_rope", &y);
        y
    }

    fn qk_norm_rope_bwd(
        &self,
        dqkv: Act<Self>,
        qkv: &Act<Self>,
        n: HeadRms<Self>,
        r: Rotary<Self>,
        h: Heads,
        [dq, dk]: [&mut Acc<Self>; 2],
    ) -> Act<Self> {
        let parts = self.scratch_of::<f32>(ops::qk_norm_parts(qkv.rows(), h, self.machine().processors()));
        let (norms, gradients) = (head_norms(n, r), [view(dq), view(dk)]);
        self.note(ops::qk_norm_rope_bwd(self.machine(), view(&dqkv), view(qkv), norms, h, gradients, view(&parts)));
        self.made("qk_norm_rope_bwd", &dqkv);
        [dq, dk].into_iter().for_each(|gradient| self.made("qk_norm_rope_bwd", gradient));
        dqkv
    }

    fn attention(&self, qkv: &Act<Self>, starts: &Tensor<Self, u32>, h: Heads) -> (Act<Self>, Acc<Self>) {
        let (o, lse) = (self.alloc(qkv.rows(), h.out_cols()), self.alloc(qkv.rows(), h.query));
        let s = shape(qkv.rows(), h);
        self.note(ops::attention(self.machine(), view(qkv), view(starts), view(&o), view(&lse), s));
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
        let (dqkv, s) = (self.alloc(qkv.rows(), qkv.cols()), shape(qkv.rows(), h));
        let parts = ops::attention_parts(s);
        let stats = self.scratch_of::<u32>(ops::stats_len(s));
        let sums = self.scratch_of::<f32>(ops::sums_len(s, parts));
        let saved = ops::AttentionSaved { qkv: view(qkv), o: view(o), lse: view(lse), starts: view(starts) };
        let scratch = ops::Scratch { stats: view(&stats), sums: view(&sums), parts };
        self.note(ops::attention_bwd(self.machine(), view(do_), saved, view(&dqkv), scratch, s));
        self.made("attention_bwd", &dqkv);
        dqkv
    }

    fn add_sinks(&self, o: Act<Self>, lse: Acc<Self>, sinks: &Act<Self>) -> (Act<Self>, Acc<Self>) {
        self.note(ops::add_sinks(self.machine(), view(&o), view(&lse), view(sinks)));
        self.made("add_sinks", &o);
        (o, lse)
    }

    fn sinks_bwd(&self, do_: &Act<Self>, o: &Act<Self>, lse: &Acc<Self>, sinks: &Act<Self>, dsinks: &mut Acc<Self>) {
        self.note(ops::sinks_bwd(self.machine(), view(do_), [view(o), view(lse)], view(sinks), view(dsinks)));
        self.made("sinks_bwd", dsinks);
    }

    fn swiglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        let y = self.alloc(gate_up.rows(), gate_up.cols() / 2);
        self.note(ops::swiglu(self.machine(), view(gate_up), view(&y), y.cols()));
        self.made("swiglu", &y);
        y
    }

    fn swiglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self> {
        self.note(ops::swiglu_bwd(self.machine(), view(dy), view(&gate_up), dy.cols()));
        self.made("swiglu_bwd", &gate_up);
        gate_up
    }

    fn geglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        let y = self.alloc(gate_up.rows(), gate_up.cols() / 2);
        self.note(ops::geglu(self.machine(), view(gate_up), view(&y), y.cols()));
        self.made("geglu", &y);
        y
    }

    fn geglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self> {
        self.note(ops::geglu_bwd(self.machine(), view(dy), view(&gate_up), dy.cols()));
        self.made("geglu_bwd", &gate_up);
        gate_up
    }

    fn gelu(&self, x: &Act<Self>) -> Act<Self> {
        let y = self.alloc(x.rows(), x.cols());
        self.note(ops::gelu(self.machine(), view(x), view(&y)));
        self.made("gelu", &y);
        y
    }

    fn gelu_bwd(&self, dy: &Act<Self>, x: Act<Self>) -> Act<Self> {
        self.note(ops::gelu_bwd(self.machine(), view(dy), view(&x)));
        self.made("gelu_bwd", &x);
        x
    }

    fn router_logits(&self, x: &Act<Self>, w: &Act<Self>, bias: Option<&Act<Self>>) -> Acc<Self> {
        experts::router_logits(self, x, w, bias)
    }

    fn route(&self, logits: &Acc<Self>, r: Router) -> Choices<Self> {
        experts::route(self, logits, r)
    }

    fn route_bwd(
        &self,
        dweights: &Acc<Self>,
        logits: &Acc<Self>,
        choices: &Choices<Self>,
        r: Router,
        balance: Balance<Self>,
        sums: [&mut Acc<Self>; 2],
    ) -> Acc<Self> {
        experts::route_bwd(self, dweights, logits, choices, r, balance, sums)
    }

    fn sort_choices(&self, choices: &Tensor<Self, u32>, experts: usize) -> Sorted<Self> {
        experts::sort_choices(self, choices, experts)
    }

    fn take_rows<T: Elem>(&self, x: &Tensor<Self, T>, index: &Tensor<Self, u32>, per: usize, y: &mut Tensor<Self, T>) {
        experts::take_rows(self, x, index, per, y);
    }

    fn sum_rows(&self, x: &Act<Self>, places: &Tensor<Self, u32>) -> Act<Self> {
        experts::sum_rows(self, x, places)
    }

    fn grouped_nt(
        &self,
        x: &Act<Self>,
        w: &Act<Self>,
        bias: Option<GroupBias<Self>>,
        g: Groups<Self>,
        y: &mut Act<Self>,
    ) {
        experts::grouped_nt(self, x, w, bias, g, y);
    }

    fn grouped_nn(&self, x: &Act<Self>, w: &Act<Self>, g: Groups<Self>, y: &mut Act<Self>) {
        experts::grouped_nn(self, x, w, g, y);
    }

    fn grouped_tn_acc(&self, dy: &Act<Self>, x: &Act<Self>, g: Groups<Self>, dw: &mut Acc<Self>) {
        experts::grouped_tn_acc(self, dy, x, g, dw);
    }

    fn grouped_bias_bwd(&self, dy: &Act<Self>, bias: GroupBias<Self>, g: Groups<Self>, dbias: &mut Acc<Self>) {
        experts::grouped_bias_bwd(self, dy, bias, g, dbias);
    }

    fn grouped_bias_dot(&self, dy: &Act<Self>, bias: GroupBias<Self>, g: Groups<Self>, dweights: &mut Acc<Self>) {
        experts::grouped_bias_dot(self, dy, bias, g, dweights);
    }

    fn swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>) {
        experts::gated_weighted(self, "swiglu_weighted", ops::swiglu_weighted, gate_up, weights, y);
    }

    fn swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    ) {
        let (op, run) = ("swiglu_weighted_bwd", ops::swiglu_weighted_bwd);
        experts::gated_weighted_bwd(self, op, run, dy, gate_up, [weights, dweights]);
    }

    fn clamped_swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>) {
        experts::gated_weighted(self, "clamped_swiglu_weighted", ops::clamped_swiglu_weighted, gate_up, weights, y);
    }

    fn clamped_swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    ) {
        let (op, run) = ("clamped_swiglu_weighted_bwd", ops::clamped_swiglu_weighted_bwd);
        experts::gated_weighted_bwd(self, op, run, dy, gate_up, [weights, dweights]);
    }

    fn embed(&self, ids: &Tensor<Self, u32>, table: &Act<Self>, first: usize) -> Act<Self> {
        let y = self.alloc(ids.len(), table.cols());
        self.note(ops::embed(self.machine(), view(ids), view(table), first, view(&y)));
        self.made("embed", &y);
        y
    }

    fn embed_bwd(&self, ids: &Tensor<Self, u32>, dy: &Act<Self>, first: usize, dtable: &mut Acc<Self>) {
        let words = self.scratch_of::<u32>(ops::embed_words(ids.len()));
        let parts = self.scratch_of::<f32>(ops::embed_parts(ids.len(), dy.cols()));
        let scratch = ops::EmbedScratch { words: view(&words), parts: view(&parts) };
        self.note(ops::embed_bwd(self.machine(), view(ids), view(dy), first, view(dtable), scratch));
        self.made("embed_bwd", dtable);
    }

    fn logits_rows(&self, cols: usize) -> usize {
        self.0.scratch.logits_rows(cols)
    }

    fn xent_stats(&self, logits: &Act<Self>, targets: &Tensor<Self, u32>, x: Xent) -> Acc<Self> {
        let stats = self.alloc(logits.rows(), 3);
        self.note(ops::xent_stats(self.machine(), view(logits), view(targets), x, view(&stats)));
        stats
    }

    fn xent_combine(&self, stats: &Acc<Self>, ranks: usize) -> Acc<Self> {
        let combined = self.alloc(stats.rows() / ranks, 3);
        self.note(ops::xent_combine(self.machine(), view(stats), view(&combined)));
        combined
    }

    fn xent_totals(&self, stats: &Acc<Self>, weights: &Acc<Self>, totals: &mut Acc<Self>) {
        self.note(ops::xent_totals(self.machine(), view(stats), view(weights), view(totals)));
        self.made("xent_totals", totals);
    }

    fn xent_grad(
        &self,
        logits: Act<Self>,
        stats: &Acc<Self>,
        targets: &Tensor<Self, u32>,
        weights: &Acc<Self>,
        x: Xent,
    ) -> Act<Self> {
        let rows = ops::Rows { stats: view(stats), targets: view(targets), weights: view(weights) };
        self.note(ops::xent_grad(self.machine(), view(&logits), rows, x));
        self.made("xent_grad", &logits);
        logits
    }

    fn pick(&self, x: &Acc<Self>, ranges: &[Range<usize>]) -> Acc<Self> {
        let part = self.alloc(ranges.iter().map(Range::len).sum(), 1);
        self.note(ops::pick(self.machine(), view(x), ranges, view(&part)));
        part
    }

    fn put(&self, part: &Acc<Self>, ranges: &[Range<usize>], x: &mut Acc<Self>) {
        self.note(ops::put(self.machine(), view(part), ranges, view(x)));
    }

    fn checksum<T: Elem>(&self, x: &Tensor<Self, T>, range: Range<usize>) -> Tensor<Self, u32> {
        let parts = self.alloc(1, CHECKSUM_PARTS);
        self.note(ops::checksum::<T>(self.machine(), view(x).part::<T>(range), view(&parts)));
        parts
    }

    fn sum_squares(&self, g: &Acc<Self>, range: Range<usize>, out: &mut Acc<Self>) {
        let parts = self.scratch_of::<f32>(2 * ops::squares_parts(range.len()));
        // SAFETY: as in `view`; the partial sums are f64, twice the size of the elements that were allocated.
        let parts = unsafe { View::new(parts.mem.at(), parts.len() / 2) };
        self.note(ops::sum_squares(self.machine(), view(g).part::<f32>(range), view(out), parts));
    }

    fn judge(&self, square: &Acc<Self>, totals: &Acc<Self>, state: &mut Acc<Self>, rule: Rule) -> Acc<Self> {
        let out = self.alloc(1, 3);
        self.note(ops::judge(self.machine(), view(square), view(totals), view(state), rule, view(&out)));
        out
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
        [&*master, &*m, &*v].into_iter().for_each(|state| self.0.before_change(state.mem.bytes()));
        let state = ops::State { master: view(master), m: view(m), v: view(v) };
        self.note(ops::adamw(self.machine(), view(g), view(factor), state, view(weights), step(hp)));
    }

    fn begin_checks(&self) {
        self.0.checks.begin();
    }

    fn end_checks(&self) -> Option<Origin> {
        self.0.checks.end()
    }

    fn scope<T>(&self, part: Scope, work: impl FnOnce() -> T) -> T {
        let device = &self.0.device;
        let name = part.to_string();
        self.0.recorder.scope(part);
        self.0.checks.enter(part);
        let label = || Label::Scope(part);
        device.recorded(Detail::of(part), Track::Parts, label, device.stream(), || device.scope(&name, work))
    }

    /// None if the device has a fault, which is recorded.
    fn record_event(&self) -> Option<Rc<Event>> {
        let device = &self.0.device;
        self.0.must(device.events().record(device.stream(), Timing::Enabled)).map(Rc::new)
    }

    fn elapsed(&self, from: &Option<Rc<Event>>, to: &Option<Rc<Event>>) -> f64 {
        let (Some(from), Some(to)) = (from, to) else { return 0.0 };
        self.0.must(to.wait().and_then(|()| to.seconds_since(from))).unwrap_or_default()
    }

    fn begin_trace(&self, detail: Detail) {
        self.0.device.begin_trace(detail);
    }

    fn end_trace(&self) -> Vec<Span> {
        self.0.device.end_trace()
    }
}
