//! A backend that allocates nothing and computes nothing. It keeps the books of the memory that another
//! backend would take, scratch of its ops included, and writes down each op and each collective. One
//! process can be any rank of any mesh: what its collectives would bring is zeros.

mod group;
mod log;
mod memory;
mod rank;
mod zeros;

#[cfg(test)]
pub(crate) mod tests;

pub use group::{DryGroup, DryTicket};
pub use log::{Call, Keep, Log, LogEntry, Product, Totals, Traffic, What};
pub use memory::{DryMem, Peak};
pub use rank::Dry;

use crate::backend::{Acc, Act, AdamW, Backend, Detail, Elem, Fault, Heads, HostCopy, Scope, Span, Tensor, Xent};
use crate::layout::mesh::GroupKind;
use crate::memory::free_list::Usage;
use crate::model::param_specs::Unit;
use memory::Use;
use std::marker::PhantomData;
use std::ops::Range;
use zeros::Zeros;

impl<A: Elem> Backend for Dry<A> {
    type Act = A;
    type Mem<T: Elem> = DryMem<T>;
    type Ticket = DryTicket;
    type Group = DryGroup;
    type Fetch<T: Elem> = Zeros<T>;
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

    // As the contract has it; here nothing is behind a view.
    unsafe fn alias<T: Elem>(mem: &DryMem<T>, range: Range<usize>) -> DryMem<T> {
        mem.alias(range)
    }

    fn upload<T: Elem>(&self, host: &[T], rows: usize, cols: usize) -> Tensor<Self, T> {
        assert_eq!(host.len(), rows * cols, "elements of a {rows} x {cols} matrix");
        self.op("upload", [rows, cols, 1]);
        self.alloc(rows, cols)
    }

    fn write<T: Elem>(&self, host: &[T], to: &mut Tensor<Self, T>) {
        assert_eq!(host.len(), to.len(), "elements of a matrix {:?}", to.shape());
        self.over("write", to);
    }

    fn copy_to_host_async<T: Elem>(&self, x: &Tensor<Self, T>) -> Zeros<T> {
        self.over("fetch", x);
        Zeros(x.len(), PhantomData)
    }

    fn wait_host<T: Elem>(&self, fetch: Zeros<T>) -> Result<Vec<T>, Fault> {
        fetch.wait()
    }

    fn copy<T: Elem>(&self, x: &Tensor<Self, T>) -> Tensor<Self, T> {
        self.over("copy", x);
        self.alloc(x.rows(), x.cols())
    }

    fn copy_to<T: Elem>(&self, x: &Tensor<Self, T>, to: &mut Tensor<Self, T>) {
        expect("a copy", to, x.rows(), x.cols());
        self.over("copy", x);
    }

    fn zero(&self, x: &mut Acc<Self>) {
        self.over("zero", x);
    }

    fn round(&self, x: &Acc<Self>, y: &mut Act<Self>) {
        expect("y", y, x.rows(), x.cols());
        self.over("round", x);
    }

    fn widen(&self, x: &Act<Self>, y: &mut Acc<Self>) {
        assert_eq!(x.len(), y.len(), "elements to widen");
        self.over("widen", x);
    }

    fn matmul_nt(&self, a: &Act<Self>, b: &Act<Self>) -> Act<Self> {
        let what = if self.in_head.get() { Use::Logits } else { Use::Other };
        let mut out = self.take(a.rows(), b.rows(), what);
        self.matmul_nt_into(a, b, &mut out);
        out
    }

    fn matmul_nt_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        expect("a b^T", out, a.rows(), b.rows());
        self.product("matmul_nt", [a.rows(), b.rows(), a.cols()], b.cols());
    }

    fn matmul_nn_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        expect("a b", out, a.rows(), b.cols());
        self.product("matmul_nn", [a.rows(), b.cols(), a.cols()], b.rows());
    }

    fn comm_chunks(&self, rows: usize) -> usize {
        self.scratch.comm_chunks(rows)
    }

    fn matmul_tn_acc(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Acc<Self>) {
        assert_eq!(a.rows(), b.rows(), "rows of {:?} and {:?}", a.shape(), b.shape());
        expect("a^T b", out, a.cols(), b.cols());
        let shape = [a.cols(), b.cols(), a.rows()];
        self.op("matmul_tn_acc", shape);
        self.log.borrow_mut().products.insert(Product { name: "matmul_tn_acc", sizes: shape });
        self.pass(self.scratch.matmul_acc(shape));
    }

    fn add(&self, x: Act<Self>, y: &Act<Self>) -> Act<Self> {
        expect("y", y, x.rows(), x.cols());
        self.over("add", y);
        x
    }

    fn rmsnorm(&self, x: &Act<Self>, _: &Act<Self>, _: f32) -> (Act<Self>, Acc<Self>) {
        self.over("rmsnorm", x);
        (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1))
    }

    fn add_rmsnorm(&self, x: &Act<Self>, r: Act<Self>, _: &Act<Self>, _: f32) -> (Act<Self>, Act<Self>, Acc<Self>) {
        expect("r", &r, x.rows(), x.cols());
        self.over("add_rmsnorm", x);
        (r, self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1))
    }

    fn rmsnorm_recompute(&self, x: &Act<Self>, _: &Acc<Self>, _: &Act<Self>) -> Act<Self> {
        self.over("rmsnorm_recompute", x);
        self.alloc(x.rows(), x.cols())
    }

    fn rmsnorm_bwd(&self, dy: Act<Self>, x: &Act<Self>, _: &Acc<Self>, _: &Act<Self>, dw: &mut Acc<Self>) -> Act<Self> {
        expect("dy", &dy, x.rows(), x.cols());
        expect("dw", dw, 1, x.cols());
        self.over("rmsnorm_bwd", x);
        self.pass(self.scratch.rmsnorm_bwd(x.rows(), x.cols()));
        dy
    }

    fn rmsnorm_bwd_add(
        &self,
        dres: &Act<Self>,
        dy: Act<Self>,
        x: &Act<Self>,
        _: &Acc<Self>,
        _: &Act<Self>,
        dw: &mut Acc<Self>,
    ) -> Act<Self> {
        expect("dres", dres, x.rows(), x.cols());
        expect("dy", &dy, x.rows(), x.cols());
        expect("dw", dw, 1, x.cols());
        self.over("rmsnorm_bwd_add", x);
        self.pass(self.scratch.rmsnorm_bwd(x.rows(), x.cols()));
        dy
    }

    fn rope(&self, qkv: Act<Self>, _: &Acc<Self>, h: Heads) -> Act<Self> {
        expect("qkv", &qkv, qkv.rows(), h.qkv_cols());
        self.op("rope", [qkv.rows(), (h.query + h.kv) * h.dim, 1]);
        qkv
    }

    fn rope_bwd(&self, dqkv: Act<Self>, _: &Acc<Self>, h: Heads) -> Act<Self> {
        expect("dqkv", &dqkv, dqkv.rows(), h.qkv_cols());
        self.op("rope_bwd", [dqkv.rows(), (h.query + h.kv) * h.dim, 1]);
        dqkv
    }

    fn attention(&self, qkv: &Act<Self>, starts: &Tensor<Self, u32>, h: Heads) -> (Act<Self>, Acc<Self>) {
        expect("qkv", qkv, starts.rows(), h.qkv_cols());
        self.op("attention", [qkv.rows(), h.seq, h.query * h.dim]);
        let out = (self.alloc(qkv.rows(), h.out_cols()), self.alloc(qkv.rows(), h.query));
        self.pass(self.scratch.attention(qkv.rows(), h));
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
        self.op("attention_bwd", [qkv.rows(), h.seq, h.query * h.dim]);
        let dqkv = self.alloc(qkv.rows(), qkv.cols());
        self.pass(self.scratch.attention_bwd(qkv.rows(), h));
        dqkv
    }

    fn swiglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        self.over("swiglu", gate_up);
        self.alloc(gate_up.rows(), gate_up.cols() / 2)
    }

    fn swiglu_bwd(&self, dy: &Act<Self>, gate_up: Act<Self>) -> Act<Self> {
        expect("[gate | up]", &gate_up, dy.rows(), 2 * dy.cols());
        self.over("swiglu_bwd", &gate_up);
        gate_up
    }

    fn embed(&self, ids: &Tensor<Self, u32>, table: &Act<Self>, _: usize) -> Act<Self> {
        self.op("embed", [ids.len(), table.cols(), 1]);
        self.alloc(ids.len(), table.cols())
    }

    fn embed_bwd(&self, ids: &Tensor<Self, u32>, dy: &Act<Self>, _: usize, dtable: &mut Acc<Self>) {
        expect("dy", dy, ids.len(), dtable.cols());
        self.over("embed_bwd", dy);
        self.pass(self.scratch.embed_bwd(ids.len(), dy.cols()));
    }

    fn logits_rows(&self, cols: usize) -> usize {
        self.scratch.logits_rows(cols)
    }

    fn xent_stats(&self, logits: &Act<Self>, _: &Tensor<Self, u32>, _: usize) -> Acc<Self> {
        self.over("xent_stats", logits);
        self.alloc(logits.rows(), 3)
    }

    fn xent_combine(&self, stats: &Acc<Self>, ranks: usize) -> Acc<Self> {
        self.over("xent_combine", stats);
        self.alloc(stats.rows() / ranks, 3)
    }

    fn xent_totals(&self, stats: &Acc<Self>, weights: &Acc<Self>, _: &mut Acc<Self>) {
        expect("statistics", stats, weights.len(), 3);
        self.over("xent_totals", stats);
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
        self.over("xent_grad", &logits);
        logits
    }

    fn pick(&self, _: &Acc<Self>, ranges: &[Range<usize>]) -> Acc<Self> {
        let part = self.alloc(ranges.iter().map(Range::len).sum(), 1);
        self.over("pick", &part);
        part
    }

    fn put(&self, part: &Acc<Self>, ranges: &[Range<usize>], _: &mut Acc<Self>) {
        expect("the part", part, ranges.iter().map(Range::len).sum(), 1);
        self.over("put", part);
    }

    fn sum_squares(&self, _: &Acc<Self>, range: Range<usize>, _: &mut Acc<Self>) {
        self.op("sum_squares", [range.len(), 1, 1]);
        self.pass(self.scratch.sum_squares(range.len()));
    }

    fn clip_factor(&self, square: &Acc<Self>, totals: &Acc<Self>, _: f32) -> Acc<Self> {
        expect("totals", totals, 1, 3);
        self.over("clip_factor", square);
        self.alloc(1, 2)
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
        self.over("adamw", master);
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

/// Asserts that a tensor has the shape that an op needs of it.
#[track_caller]
fn expect<A: Elem, T: Elem>(what: &str, x: &Tensor<Dry<A>, T>, rows: usize, cols: usize) {
    assert_eq!(x.shape(), (rows, cols), "the shape of {what}");
}
