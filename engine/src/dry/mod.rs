//! A backend that allocates nothing and computes nothing. It runs the allocator of the backend that it stands in for,
//! including the scratch of the ops, and logs every op and every collective. One process can be any rank of any mesh,
//! since collectives need no other rank.

mod group;
mod log;
mod memory;
mod rank;

pub use group::{DryGroup, DryTicket};
pub use log::{Call, Keep, Log, LogEntry, Operation, Product, Totals, Traffic};
pub use memory::{DryMem, Peak};
pub use rank::Dry;

use crate::backend::{
    Acc, Act, AdamW, Backend, Balance, CHECKSUM_PARTS, Choices, Detail, Elem, Fault, Form, GroupBias, Groups, HeadRms,
    Heads, HostCopy, LayerNorm, Op, Operands, Origin, Rms, Rotary, Router, Rule, Scope, Sorted, Span, Tensor, Total,
    Xent,
};
use crate::layout::mesh::GroupKind;
use crate::memory::free_list::Usage;
use crate::model::param_specs::Unit;
use memory::Use;
use std::marker::PhantomData;
use std::ops::Range;

impl<A: Elem> Backend for Dry<A> {
    type Act = A;
    type Mem<T: Elem> = DryMem<T>;
    type Ticket = DryTicket;
    type Group = DryGroup;
    type HostCopy<T: Elem> = Zeros<T>;
    type Event = ();
    const RUNS_AHEAD: bool = false;

    fn group(&self, kind: GroupKind, members: &[usize]) -> DryGroup {
        DryGroup::new(kind, members, self.log.clone(), self.memory.clone())
    }

    fn device(&self) -> String {
        "none".into()
    }

    fn usage(&self) -> Usage {
        self.memory.borrow().usage()
    }

    fn alloc<T: Elem>(&self, rows: usize, cols: usize) -> Tensor<Self, T> {
        self.take(rows, cols, Use::Other)
    }

    // A view has no memory.
    unsafe fn alias<T: Elem>(mem: &DryMem<T>, range: Range<usize>) -> DryMem<T> {
        mem.alias(range)
    }

    fn upload<T: Elem>(&self, host: &[T], rows: usize, cols: usize) -> Tensor<Self, T> {
        assert_eq!(host.len(), rows * cols, "elements of a {rows} x {cols} matrix");
        self.op(Op::Upload, Operands::Matrix(rows, cols));
        self.alloc(rows, cols)
    }

    fn write<T: Elem>(&self, host: &[T], to: &mut Tensor<Self, T>) {
        assert_eq!(host.len(), to.len(), "elements of a matrix {:?}", to.shape());
        self.over(Op::Write, to);
    }

    fn copy_to_host_async<T: Elem>(&self, x: &Tensor<Self, T>) -> Zeros<T> {
        self.over(Op::Fetch, x);
        Zeros(x.len(), PhantomData)
    }

    fn wait_host<T: Elem>(&self, copy: Zeros<T>) -> Result<Vec<T>, Fault> {
        copy.wait()
    }

    fn counts_on_host(&self, counts: &Tensor<Self, u32>, planned: impl FnOnce(f64) -> Vec<u32>) -> Vec<u32> {
        self.over(Op::Fetch, counts);
        planned(self.imbalance)
    }

    fn copy<T: Elem>(&self, x: &Tensor<Self, T>) -> Tensor<Self, T> {
        self.over(Op::Copy, x);
        self.alloc(x.rows(), x.cols())
    }

    fn copy_to<T: Elem>(&self, x: &Tensor<Self, T>, to: &mut Tensor<Self, T>) {
        expect("a copy", to, x.rows(), x.cols());
        self.over(Op::Copy, x);
    }

    fn zero(&self, x: &mut Acc<Self>) {
        self.over(Op::Zero, x);
    }

    fn round(&self, x: &Acc<Self>, y: &mut Act<Self>) {
        expect("y", y, x.rows(), x.cols());
        self.over(Op::Round, x);
    }

    fn widen(&self, x: &Act<Self>, y: &mut Acc<Self>) {
        assert_eq!(x.len(), y.len(), "elements to widen");
        self.over(Op::Widen, x);
    }

    fn rounded(&self, x: f32) -> f32 {
        x
    }

    fn matmul_nt(&self, a: &Act<Self>, b: &Act<Self>) -> Act<Self> {
        let what = if self.in_head.get() { Use::Logits } else { Use::Other };
        let mut out = self.take(a.rows(), b.rows(), what);
        self.matmul_nt_into(a, b, &mut out);
        out
    }

    fn matmul_nt_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        expect("a b^T", out, a.rows(), b.rows());
        self.product(Form::Nt, [a.rows(), b.rows(), a.cols()], b.cols());
    }

    fn matmul_nn_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        expect("a b", out, a.rows(), b.cols());
        self.product(Form::Nn, [a.rows(), b.cols(), a.cols()], b.rows());
    }

    fn matmul_nt_bias_into(&self, a: &Act<Self>, b: &Act<Self>, bias: &Act<Self>, out: &mut Act<Self>) {
        expect("bias", bias, 1, b.rows());
        self.matmul_nt_into(a, b, out);
    }

    fn comm_chunks(&self, rows: usize) -> usize {
        self.scratch.comm_chunks(rows)
    }

    fn matmul_tn_acc(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Acc<Self>) {
        expect("a^T b", out, a.cols(), b.cols());
        self.product(Form::TnAcc, [a.cols(), b.cols(), a.rows()], b.rows());
    }

    fn add(&self, x: Act<Self>, y: &Act<Self>) -> Act<Self> {
        expect("y", y, x.rows(), x.cols());
        self.over(Op::Add, y);
        x
    }

    fn add_bias(&self, x: Act<Self>, bias: &Act<Self>) -> Act<Self> {
        expect("bias", bias, 1, x.cols());
        self.over(Op::AddBias, &x);
        x
    }

    fn bias_bwd(&self, dy: &Act<Self>, dbias: &mut Acc<Self>) {
        expect("dbias", dbias, 1, dy.cols());
        self.over(Op::BiasBwd, dy);
    }

    fn scale(&self, x: Act<Self>, _: f32) -> Act<Self> {
        self.over(Op::Scale, &x);
        x
    }

    fn rmsnorm(&self, x: &Act<Self>, _: Rms<Self>) -> (Act<Self>, Acc<Self>) {
        self.over(Op::Rmsnorm, x);
        (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1))
    }

    fn add_rmsnorm(&self, x: &Act<Self>, r: Act<Self>, _: Rms<Self>) -> (Act<Self>, Act<Self>, Acc<Self>) {
        expect("r", &r, x.rows(), x.cols());
        self.over(Op::AddRmsnorm, x);
        (r, self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1))
    }

    fn rmsnorm_recompute(&self, x: &Act<Self>, _: &Acc<Self>, _: Rms<Self>) -> Act<Self> {
        self.over(Op::RmsnormRecompute, x);
        self.alloc(x.rows(), x.cols())
    }

    fn rmsnorm_bwd(&self, dy: Act<Self>, x: &Act<Self>, _: &Acc<Self>, _: Rms<Self>, dw: &mut Acc<Self>) -> Act<Self> {
        expect("dy", &dy, x.rows(), x.cols());
        expect("dw", dw, 1, x.cols());
        self.over(Op::RmsnormBwd, x);
        dy
    }

    fn rmsnorm_bwd_add(
        &self,
        dres: &Act<Self>,
        dy: Act<Self>,
        x: &Act<Self>,
        _: &Acc<Self>,
        _: Rms<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self> {
        expect("dres", dres, x.rows(), x.cols());
        expect("dy", &dy, x.rows(), x.cols());
        expect("dw", dw, 1, x.cols());
        self.over(Op::RmsnormBwdAdd, x);
        dy
    }

    fn layernorm(&self, x: &Act<Self>, n: LayerNorm<Self>) -> (Act<Self>, Acc<Self>) {
        expect("bias", n.bias, 1, x.cols());
        self.over(Op::Layernorm, x);
        (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 2))
    }

    fn layernorm_bwd(
        &self,
        _: Option<&Act<Self>>,
        dy: Act<Self>,
        x: &Act<Self>,
        _: &Acc<Self>,
        _: LayerNorm<Self>,
        dw_dbias: [&mut Acc<Self>; 2],
    ) -> Act<Self> {
        expect("dy", &dy, x.rows(), x.cols());
        dw_dbias.into_iter().for_each(|gradient| expect("dw and dbias", gradient, 1, x.cols()));
        self.over(Op::LayernormBwd, x);
        dy
    }

    fn rope(&self, qkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        expect("qkv", &qkv, r.positions.rows(), h.qkv_cols());
        self.op(Op::Rope, Operands::Matrix(qkv.rows(), (h.query + h.kv) * h.dim));
        qkv
    }

    fn rope_bwd(&self, dqkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        expect("dqkv", &dqkv, r.positions.rows(), h.qkv_cols());
        self.op(Op::RopeBwd, Operands::Matrix(dqkv.rows(), (h.query + h.kv) * h.dim));
        dqkv
    }

    fn qk_norm_rope(&self, qkv: &Act<Self>, _: HeadRms<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        expect("qkv", qkv, r.positions.rows(), h.qkv_cols());
        self.op(Op::QkNormRope, Operands::Packed(qkv.rows(), h));
        self.alloc(qkv.rows(), qkv.cols())
    }

    fn qk_norm_rope_bwd(
        &self,
        dqkv: Act<Self>,
        qkv: &Act<Self>,
        _: HeadRms<Self>,
        r: Rotary<Self>,
        h: Heads,
        dw: [&mut Acc<Self>; 2],
    ) -> Act<Self> {
        expect("qkv", qkv, r.positions.rows(), h.qkv_cols());
        expect("dqkv", &dqkv, qkv.rows(), qkv.cols());
        dw.into_iter().for_each(|dw| expect("dw", dw, 1, h.dim));
        self.op(Op::QkNormRopeBwd, Operands::Packed(qkv.rows(), h));
        dqkv
    }

    fn attention(&self, qkv: &Act<Self>, starts: &Tensor<Self, u32>, h: Heads) -> (Act<Self>, Acc<Self>) {
        expect("qkv", qkv, starts.rows(), h.qkv_cols());
        let out = (self.alloc(qkv.rows(), h.out_cols()), self.alloc(qkv.rows(), h.query));
        self.op(Op::Attention, Operands::Heads(qkv.rows(), h));
        out
    }

    fn attention_bwd(
        &self,
        do_: &Act<Self>,
        o: &Act<Self>,
        _: &Acc<Self>,
        qkv: &Act<Self>,
        _: &Tensor<Self, u32>,
        h: Heads,
    ) -> Act<Self> {
        expect("do", do_, qkv.rows(), h.out_cols());
        expect("o", o, qkv.rows(), h.out_cols());
        let dqkv = self.alloc(qkv.rows(), qkv.cols());
        self.op(Op::AttentionBwd, Operands::Heads(qkv.rows(), h));
        dqkv
    }

    fn add_sinks(&self, o: Act<Self>, lse: Acc<Self>, sinks: &Act<Self>) -> (Act<Self>, Acc<Self>) {
        expect("the sums", &lse, o.rows(), sinks.len());
        self.over(Op::AddSinks, &o);
        (o, lse)
    }

    fn sinks_bwd(&self, do_: &Act<Self>, o: &Act<Self>, lse: &Acc<Self>, sinks: &Act<Self>, dsinks: &mut Acc<Self>) {
        expect("do", do_, o.rows(), o.cols());
        expect("the sums", lse, o.rows(), sinks.len());
        expect("dsinks", dsinks, 1, sinks.len());
        self.over(Op::SinksBwd, do_);
    }

    fn swiglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        self.over(Op::Swiglu, gate_up);
        self.alloc(gate_up.rows(), gate_up.cols() / 2)
    }

    fn swiglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self> {
        expect("[gate | up]", &gate_up, dy.rows(), 2 * dy.cols());
        self.over(Op::SwigluBwd, &gate_up);
        gate_up
    }

    fn geglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        self.over(Op::Geglu, gate_up);
        self.alloc(gate_up.rows(), gate_up.cols() / 2)
    }

    fn geglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self> {
        expect("[gate | up]", &gate_up, dy.rows(), 2 * dy.cols());
        self.over(Op::GegluBwd, &gate_up);
        gate_up
    }

    fn gelu(&self, x: &Act<Self>) -> Act<Self> {
        self.over(Op::Gelu, x);
        self.alloc(x.rows(), x.cols())
    }

    fn gelu_bwd(&self, dy: &Act<Self>, x: Act<Self>) -> Act<Self> {
        expect("x", &x, dy.rows(), dy.cols());
        self.over(Op::GeluBwd, &x);
        x
    }

    fn router_logits(&self, x: &Act<Self>, w: &Act<Self>, _: Option<&Act<Self>>) -> Acc<Self> {
        let logits = self.alloc(x.rows(), w.rows());
        self.op(Op::RouterLogits, Operands::Product([x.rows(), w.rows(), x.cols()]));
        logits
    }

    fn route(&self, logits: &Acc<Self>, r: Router) -> Choices<Self> {
        self.over(Op::Route, logits);
        let (rows, k) = (logits.rows(), r.per_token);
        Choices { experts: self.alloc(rows, k), weights: self.alloc(rows, k) }
    }

    fn route_bwd(
        &self,
        dweights: &Acc<Self>,
        logits: &Acc<Self>,
        _: &Choices<Self>,
        r: Router,
        _: Balance<Self>,
        [totals, load]: [&mut Acc<Self>; 2],
    ) -> Acc<Self> {
        expect("dweights", dweights, logits.rows(), r.per_token);
        expect("totals", totals, 1, Total::COUNT);
        expect("the load", load, 1, logits.cols());
        let dlogits = self.alloc(logits.rows(), logits.cols());
        self.over(Op::RouteBwd, logits);
        dlogits
    }

    fn sort_choices(&self, choices: &Tensor<Self, u32>, experts: usize) -> Sorted<Self> {
        self.over(Op::SortChoices, choices);
        let (rows, k) = choices.shape();
        Sorted { order: self.alloc(rows * k, 1), places: self.alloc(rows, k), counts: self.alloc(1, experts) }
    }

    fn take_rows<T: Elem>(&self, x: &Tensor<Self, T>, index: &Tensor<Self, u32>, _: usize, y: &mut Tensor<Self, T>) {
        expect("y", y, index.len(), x.cols());
        self.over(Op::TakeRows, y);
    }

    fn sum_rows(&self, x: &Act<Self>, places: &Tensor<Self, u32>) -> Act<Self> {
        expect("x", x, places.len(), x.cols());
        self.over(Op::SumRows, x);
        self.alloc(places.rows(), x.cols())
    }

    fn grouped_nt(
        &self,
        x: &Act<Self>,
        w: &Act<Self>,
        bias: Option<GroupBias<Self>>,
        g: Groups<Self>,
        y: &mut Act<Self>,
    ) {
        expect("w", w, g.counts.len() * y.cols(), x.cols());
        if let Some(bias) = bias {
            bias.columns(g.counts.len(), y.cols());
        }
        self.op(Op::GroupedNt, Operands::Grouped([x.rows(), y.cols(), x.cols()], g.counts.len()));
    }

    fn grouped_nn(&self, x: &Act<Self>, w: &Act<Self>, g: Groups<Self>, y: &mut Act<Self>) {
        expect("w", w, g.counts.len() * x.cols(), y.cols());
        self.op(Op::GroupedNn, Operands::Grouped([x.rows(), y.cols(), x.cols()], g.counts.len()));
    }

    fn grouped_tn_acc(&self, dy: &Act<Self>, x: &Act<Self>, g: Groups<Self>, dw: &mut Acc<Self>) {
        expect("dw", dw, g.counts.len() * dy.cols(), x.cols());
        self.op(Op::GroupedTnAcc, Operands::GroupedAcc([dy.cols(), x.cols(), x.rows()], g.counts.len()));
    }

    fn grouped_bias_bwd(&self, dy: &Act<Self>, bias: GroupBias<Self>, g: Groups<Self>, dbias: &mut Acc<Self>) {
        expect("dbias", dbias, 1, bias.bias.len());
        let columns = bias.columns(g.counts.len(), dy.cols());
        self.op(Op::GroupedBiasBwd, Operands::Matrix(dy.rows(), columns.len()));
    }

    fn grouped_bias_dot(&self, dy: &Act<Self>, bias: GroupBias<Self>, g: Groups<Self>, dweights: &mut Acc<Self>) {
        expect("dweights", dweights, dy.rows(), 1);
        let columns = bias.columns(g.counts.len(), dy.cols());
        self.op(Op::GroupedBiasDot, Operands::Matrix(dy.rows(), columns.len()));
    }

    fn swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>) {
        self.gated_weighted(Op::SwigluWeighted, gate_up, weights, y);
    }

    fn swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    ) {
        expect("dweights", dweights, weights.rows(), 1);
        self.gated_weighted(Op::SwigluWeightedBwd, gate_up, weights, dy);
    }

    fn clamped_swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>) {
        self.gated_weighted(Op::ClampedSwigluWeighted, gate_up, weights, y);
    }

    fn clamped_swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    ) {
        expect("dweights", dweights, weights.rows(), 1);
        self.gated_weighted(Op::ClampedSwigluWeightedBwd, gate_up, weights, dy);
    }

    fn embed(&self, ids: &Tensor<Self, u32>, table: &Act<Self>, _: usize) -> Act<Self> {
        self.op(Op::Embed, Operands::Matrix(ids.len(), table.cols()));
        self.alloc(ids.len(), table.cols())
    }

    fn embed_bwd(&self, ids: &Tensor<Self, u32>, dy: &Act<Self>, _: usize, dtable: &mut Acc<Self>) {
        expect("dy", dy, ids.len(), dtable.cols());
        self.over(Op::EmbedBwd, dy);
    }

    fn logits_rows(&self, cols: usize) -> usize {
        self.scratch.logits_rows(cols)
    }

    fn xent_stats(&self, logits: &Act<Self>, _: &Tensor<Self, u32>, _: Xent) -> Acc<Self> {
        self.over(Op::XentStats, logits);
        self.alloc(logits.rows(), 3)
    }

    fn xent_combine(&self, stats: &Acc<Self>, ranks: usize) -> Acc<Self> {
        self.over(Op::XentCombine, stats);
        self.alloc(stats.rows() / ranks, 3)
    }

    fn xent_totals(&self, stats: &Acc<Self>, weights: &Acc<Self>, _: &mut Acc<Self>) {
        expect("statistics", stats, weights.len(), 3);
        self.over(Op::XentTotals, stats);
    }

    fn xent_grad(
        &self,
        logits: Act<Self>,
        stats: &Acc<Self>,
        _: &Tensor<Self, u32>,
        _: &Acc<Self>,
        _: Xent,
    ) -> Act<Self> {
        expect("statistics", stats, logits.rows(), 3);
        self.over(Op::XentGrad, &logits);
        logits
    }

    fn pick(&self, _: &Acc<Self>, ranges: &[Range<usize>]) -> Acc<Self> {
        let part = self.alloc(ranges.iter().map(Range::len).sum(), 1);
        self.over(Op::Pick, &part);
        part
    }

    fn put(&self, part: &Acc<Self>, ranges: &[Range<usize>], _: &mut Acc<Self>) {
        expect("the part", part, ranges.iter().map(Range::len).sum(), 1);
        self.over(Op::Put, part);
    }

    fn checksum<T: Elem>(&self, _: &Tensor<Self, T>, range: Range<usize>) -> Tensor<Self, u32> {
        self.op(Op::Checksum, Operands::Matrix(range.len(), 1));
        self.alloc(1, CHECKSUM_PARTS)
    }

    fn sum_squares(&self, _: &Acc<Self>, range: Range<usize>, _: &mut Acc<Self>) {
        self.op(Op::SumSquares, Operands::Matrix(range.len(), 1));
    }

    fn judge(&self, square: &Acc<Self>, totals: &Acc<Self>, state: &mut Acc<Self>, rule: Rule) -> Acc<Self> {
        expect("totals", totals, 1, Total::COUNT);
        expect("the state", state, 1, Rule::state_len(rule.window));
        self.over(Op::Judge, square);
        self.alloc(1, 3)
    }

    fn adamw(
        &self,
        g: &Acc<Self>,
        _: &Acc<Self>,
        master: &mut Acc<Self>,
        _: &mut Acc<Self>,
        _: &mut Acc<Self>,
        weights: &mut Act<Self>,
        _: AdamW,
    ) {
        assert_eq!([g.len(), weights.len()], [master.len(); 2], "elements of g and of the weights for their master");
        self.over(Op::Adamw, master);
    }

    fn begin_checks(&self) {}

    /// A dry run has no numbers.
    fn end_checks(&self) -> Option<Origin> {
        None
    }

    fn scope<T>(&self, part: Scope, work: impl FnOnce() -> T) -> T {
        self.log.borrow_mut().enter(part);
        let outside = self.in_head.replace(part == Scope::Unit(Unit::Head));
        let done = work();
        self.in_head.set(outside);
        self.log.borrow_mut().leave();
        done
    }

    fn record_event(&self) {}

    fn elapsed(&self, _: &(), _: &()) -> f64 {
        0.0
    }

    fn begin_trace(&self, _: Detail) {}

    fn end_trace(&self) -> Vec<Span> {
        Vec::new()
    }
}

/// A copy to the host, which returns as many zeros as there are elements.
pub struct Zeros<T>(usize, PhantomData<fn() -> T>);

impl<T: Elem> HostCopy<T> for Zeros<T> {
    fn wait(self) -> Result<Vec<T>, Fault> {
        Ok(vec![T::default(); self.0])
    }
}

/// Asserts that a tensor has the shape that an op needs of it.
#[track_caller]
fn expect<A: Elem, T: Elem>(what: &str, x: &Tensor<Dry<A>, T>, rows: usize, cols: usize) {
    assert_eq!(x.shape(), (rows, cols), "the shape of {what}");
}
