//! The CPU backend: every op on the cores of this rank, in f32 or in bf16. The formulas are specified by the plain f64
//! loops of `tests/reference.rs`, against which each op is tested; `ops/` has the optimized versions on slices, and
//! this file, `attention.rs` and `experts.rs` call them with the data of tensors and check the shapes.

mod attention;
pub mod cores;
mod experts;
mod float;
mod group;
mod kernel;
mod ops;
mod pool;
mod rank;
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
pub use rank::{Copied, Cpu};
pub use scratch::CpuScratch;

use crate::backend::{
    Acc, Act, AdamW, Backend, Balance, CHECKSUM_PARTS, Choices, ClampedGate, Detail, Elem, Fault, GroupBias, Groups,
    HeadRms, Heads, HostCopy, Label, LayerNorm, Origin, Rms, Rotary, Router, Rule, Scope, Sorted, Span, Tensor, Total,
    Track, Xent,
};
use crate::layout::mesh::GroupKind;
use crate::memory::free_list::Usage;
use ops::gelu::GeGlu;
use ops::swiglu::SwiGlu;
use rank::{data, data_mut, expect, expect_heads, expect_rotary, norm_gradients, params, plain, transposed};
use std::ops::Range;
use std::time::Instant;

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

    fn counts_on_host(&self, counts: &Tensor<Self, u32>, _: impl FnOnce(f64) -> Vec<u32>) -> Vec<u32> {
        self.download(counts)
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

    fn rounded(&self, x: f32) -> f32 {
        float::rounded::<A>(x)
    }

    fn matmul_nt_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        assert_eq!(a.cols(), b.cols(), "columns of {:?} and {:?}", a.shape(), b.shape());
        expect("a b^T", out, a.rows(), b.rows());
        ops::matmul::matmul(self.workers("matmul_nt"), &self.pool, plain(a), transposed(b), None, data_mut(out));
        self.made("matmul_nt", out);
    }

    fn matmul_nn_into(&self, a: &Act<Self>, b: &Act<Self>, out: &mut Act<Self>) {
        assert_eq!(a.cols(), b.rows(), "columns of {:?}, rows of {:?}", a.shape(), b.shape());
        expect("a b", out, a.rows(), b.cols());
        ops::matmul::matmul(self.workers("matmul_nn"), &self.pool, plain(a), plain(b), None, data_mut(out));
        self.made("matmul_nn", out);
    }

    fn matmul_nt_bias_into(&self, a: &Act<Self>, b: &Act<Self>, bias: &Act<Self>, out: &mut Act<Self>) {
        assert_eq!(a.cols(), b.cols(), "columns of {:?} and {:?}", a.shape(), b.shape());
        expect("a b^T", out, a.rows(), b.rows());
        expect("bias", bias, 1, b.rows());
        let (workers, bias) = (self.workers("matmul_nt"), Some(data(bias)));
        ops::matmul::matmul(workers, &self.pool, plain(a), transposed(b), bias, data_mut(out));
        self.made("matmul_nt", out);
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

    fn add_bias(&self, mut x: Act<Self>, bias: &Act<Self>) -> Act<Self> {
        expect("bias", bias, 1, x.cols());
        ops::bias::add_bias(self.workers("add_bias"), data_mut(&mut x), data(bias));
        self.made("add_bias", &x);
        x
    }

    fn bias_bwd(&self, dy: &Act<Self>, dbias: &mut Acc<Self>) {
        expect("dbias", dbias, 1, dy.cols());
        ops::bias::bias_bwd(self.workers("bias_bwd"), data(dy), data_mut(dbias));
        self.made("bias_bwd", dbias);
    }

    fn scale(&self, mut x: Act<Self>, factor: f32) -> Act<Self> {
        ops::elementwise::scale(self.workers("scale"), data_mut(&mut x), factor);
        self.made("scale", &x);
        x
    }

    fn rmsnorm(&self, x: &Act<Self>, n: Rms<Self>) -> (Act<Self>, Acc<Self>) {
        expect("w", n.w, 1, x.cols());
        let (mut y, mut rstd) = (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1));
        ops::norm::rmsnorm(self.workers("rmsnorm"), data(x), params(n), data_mut(&mut y), data_mut(&mut rstd));
        self.made("rmsnorm", &y);
        (y, rstd)
    }

    fn add_rmsnorm(&self, x: &Act<Self>, r: Act<Self>, n: Rms<Self>) -> (Act<Self>, Act<Self>, Acc<Self>) {
        expect("r", &r, x.rows(), x.cols());
        expect("w", n.w, 1, x.cols());
        let (mut h, mut y, mut rstd) = (r, self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 1));
        let (to_h, to_y, to_rstd) = (data_mut(&mut h), data_mut(&mut y), data_mut(&mut rstd));
        ops::norm::add_rmsnorm(self.workers("add_rmsnorm"), data(x), to_h, params(n), to_y, to_rstd);
        self.made("add_rmsnorm", &h);
        self.made("add_rmsnorm", &y);
        (h, y, rstd)
    }

    fn rmsnorm_recompute(&self, x: &Act<Self>, rstd: &Acc<Self>, n: Rms<Self>) -> Act<Self> {
        expect("rstd", rstd, x.rows(), 1);
        expect("w", n.w, 1, x.cols());
        let mut y = self.alloc(x.rows(), x.cols());
        ops::norm::rmsnorm_recompute(self.workers("rmsnorm_again"), data(x), data(rstd), params(n), data_mut(&mut y));
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
        norm_gradients(self, None, &mut dy, x, rstd, n, dw);
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
        expect("dres", dres, x.rows(), x.cols());
        norm_gradients(self, Some(data(dres)), &mut dy, x, rstd, n, dw);
        dy
    }

    fn layernorm(&self, x: &Act<Self>, n: LayerNorm<Self>) -> (Act<Self>, Acc<Self>) {
        expect("w", n.w, 1, x.cols());
        expect("bias", n.bias, 1, x.cols());
        let (mut y, mut stats) = (self.alloc(x.rows(), x.cols()), self.alloc(x.rows(), 2));
        let (to_y, to_stats) = (data_mut(&mut y), data_mut(&mut stats));
        let workers = self.workers("layernorm");
        ops::layernorm::layernorm(workers, data(x), data(n.w), data(n.bias), n.eps, to_y, to_stats);
        self.made("layernorm", &y);
        (y, stats)
    }

    fn layernorm_bwd(
        &self,
        dres: Option<&Act<Self>>,
        mut dy: Act<Self>,
        x: &Act<Self>,
        stats: &Acc<Self>,
        n: LayerNorm<Self>,
        [dw, dbias]: [&mut Acc<Self>; 2],
    ) -> Act<Self> {
        expect("dy", &dy, x.rows(), x.cols());
        expect("statistics", stats, x.rows(), 2);
        expect("dw", dw, 1, x.cols());
        expect("dbias", dbias, 1, x.cols());
        dres.inspect(|dres| expect("dres", dres, x.rows(), x.cols()));
        let saved = ops::layernorm::Saved { x: data(x), stats: data(stats), w: data(n.w) };
        let (workers, to) = (self.workers("layernorm_bwd"), [data_mut(dw), data_mut(dbias)]);
        ops::layernorm::layernorm_bwd(workers, &self.pool, dres.map(data), data_mut(&mut dy), saved, to);
        self.made("layernorm_bwd", &dy);
        self.made("layernorm_bwd", dw);
        dy
    }

    fn rope(&self, mut qkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        expect_heads(&qkv, h);
        expect_rotary(r, qkv.rows(), h);
        ops::rope::rope(self.workers("rope"), data_mut(&mut qkv), data(r.table), data(r.positions), h);
        self.made("rope", &qkv);
        qkv
    }

    fn rope_bwd(&self, mut dqkv: Act<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        expect_heads(&dqkv, h);
        expect_rotary(r, dqkv.rows(), h);
        ops::rope::rope_bwd(self.workers("rope_bwd"), data_mut(&mut dqkv), data(r.table), data(r.positions), h);
        self.made("rope_bwd", &dqkv);
        dqkv
    }

    fn qk_norm_rope(&self, qkv: &Act<Self>, n: HeadRms<Self>, r: Rotary<Self>, h: Heads) -> Act<Self> {
        attention::qk_norm_rope(self, qkv, n, r, h)
    }

    fn qk_norm_rope_bwd(
        &self,
        dqkv: Act<Self>,
        qkv: &Act<Self>,
        n: HeadRms<Self>,
        r: Rotary<Self>,
        h: Heads,
        dw: [&mut Acc<Self>; 2],
    ) -> Act<Self> {
        attention::qk_norm_rope_bwd(self, dqkv, qkv, n, r, h, dw)
    }

    fn attention(&self, qkv: &Act<Self>, starts: &Tensor<Self, u32>, h: Heads) -> (Act<Self>, Acc<Self>) {
        attention::attention(self, qkv, starts, h)
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
        attention::attention_bwd(self, do_, o, lse, qkv, starts, h)
    }

    fn add_sinks(&self, o: Act<Self>, lse: Acc<Self>, sinks: &Act<Self>) -> (Act<Self>, Acc<Self>) {
        attention::add_sinks(self, o, lse, sinks)
    }

    fn sinks_bwd(&self, do_: &Act<Self>, o: &Act<Self>, lse: &Acc<Self>, sinks: &Act<Self>, dsinks: &mut Acc<Self>) {
        attention::sinks_bwd(self, do_, o, lse, sinks, dsinks);
    }

    fn swiglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        let f = gate_up.cols() / 2;
        expect("[gate | up]", gate_up, gate_up.rows(), 2 * f);
        let mut y = self.alloc(gate_up.rows(), f);
        ops::gated::gated::<A, SwiGlu>(self.workers("swiglu"), data(gate_up), f, data_mut(&mut y));
        self.made("swiglu", &y);
        y
    }

    fn swiglu_bwd(&self, dy: &Act<Self>, mut gate_up: Act<Self>) -> Act<Self> {
        expect("[gate | up]", &gate_up, dy.rows(), 2 * dy.cols());
        ops::gated::gated_bwd::<A, SwiGlu>(self.workers("swiglu_bwd"), data(dy), dy.cols(), data_mut(&mut gate_up));
        self.made("swiglu_bwd", &gate_up);
        gate_up
    }

    fn geglu(&self, gate_up: &Act<Self>) -> Act<Self> {
        let f = gate_up.cols() / 2;
        expect("[gate | up]", gate_up, gate_up.rows(), 2 * f);
        let mut y = self.alloc(gate_up.rows(), f);
        ops::gated::gated::<A, GeGlu>(self.workers("geglu"), data(gate_up), f, data_mut(&mut y));
        self.made("geglu", &y);
        y
    }

    fn geglu_bwd(&self, dy: &Act<Self>, mut gate_up: Act<Self>) -> Act<Self> {
        expect("[gate | up]", &gate_up, dy.rows(), 2 * dy.cols());
        ops::gated::gated_bwd::<A, GeGlu>(self.workers("geglu_bwd"), data(dy), dy.cols(), data_mut(&mut gate_up));
        self.made("geglu_bwd", &gate_up);
        gate_up
    }

    fn gelu(&self, x: &Act<Self>) -> Act<Self> {
        let mut y = self.alloc(x.rows(), x.cols());
        ops::gelu::gelu(self.workers("gelu"), data(x), data_mut(&mut y));
        self.made("gelu", &y);
        y
    }

    fn gelu_bwd(&self, dy: &Act<Self>, mut x: Act<Self>) -> Act<Self> {
        expect("x", &x, dy.rows(), dy.cols());
        ops::gelu::gelu_bwd(self.workers("gelu_bwd"), data(dy), data_mut(&mut x));
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
        experts::sort(self, choices, experts)
    }

    fn take_rows<T: Elem>(&self, x: &Tensor<Self, T>, index: &Tensor<Self, u32>, per: usize, y: &mut Tensor<Self, T>) {
        expect("y", y, index.len(), x.cols());
        ops::experts::take(self.workers("take_rows"), data(x), data(index), per, data_mut(y));
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
        experts::grouped(self, "grouped_nt", [x, w], |w| w.t(), bias, g, y);
    }

    fn grouped_nn(&self, x: &Act<Self>, w: &Act<Self>, g: Groups<Self>, y: &mut Act<Self>) {
        experts::grouped(self, "grouped_nn", [x, w], |w| w, None, g, y);
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
        experts::gated_weighted::<A, SwiGlu>(self, "swiglu_weighted", gate_up, weights, y);
    }

    fn swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    ) {
        experts::gated_weighted_bwd::<A, SwiGlu>(self, "swiglu_weighted_bwd", dy, gate_up, weights, dweights);
    }

    fn clamped_swiglu_weighted(&self, gate_up: &Act<Self>, weights: &Acc<Self>, y: &mut Act<Self>) {
        experts::gated_weighted::<A, ClampedGate>(self, "clamped_swiglu_weighted", gate_up, weights, y);
    }

    fn clamped_swiglu_weighted_bwd(
        &self,
        dy: &Act<Self>,
        gate_up: &mut Act<Self>,
        weights: &Acc<Self>,
        dweights: &mut Acc<Self>,
    ) {
        let op = "clamped_swiglu_weighted_bwd";
        experts::gated_weighted_bwd::<A, ClampedGate>(self, op, dy, gate_up, weights, dweights);
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

    fn xent_stats(&self, logits: &Act<Self>, targets: &Tensor<Self, u32>, x: Xent) -> Acc<Self> {
        expect("targets", targets, logits.rows(), 1);
        let mut stats = self.alloc(logits.rows(), 3);
        let (cols, to) = (logits.cols(), data_mut(&mut stats));
        ops::xent::xent_stats(self.workers("xent_stats"), data(logits), cols, data(targets), x, to);
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
