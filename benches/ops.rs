//! Every op of the CPU backend at the shapes of the two benchmark models, on two threads.
//! `cargo bench --bench ops [-- FILTER]`. Throughput of products and attention is in FLOP ("elem"), of
//! the rest in bytes that must cross the memory.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use engine::backend::{Acc, Act, AdamW, Backend, HeadRms, Heads, Rms, Rotary, Tensor, Xent};
use engine::cpu::{Cpu, Float};
use half::bf16;
use std::time::Duration;

const THREADS: usize = 2;

/// Sizes of a model and its micro-batch.
struct Model {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    heads: Heads,
    vocab: usize,
    sequences: usize,
    /// Rows of a chunk of the loss.
    chunk: usize,
}

fn models() -> [Model; 2] {
    [
        Model {
            name: "288",
            hidden: 288,
            intermediate: 768,
            heads: Heads::full(6, 6, 48, 256),
            vocab: 32000,
            sequences: 4,
            chunk: 1024,
        },
        Model {
            name: "512",
            hidden: 512,
            intermediate: 1376,
            heads: Heads::full(8, 4, 64, 512),
            vocab: 8192,
            sequences: 4,
            chunk: 1024,
        },
    ]
}

/// One model's group of benchmarks on one backend.
struct Bench<'a, 'b, A: Float> {
    group: BenchmarkGroup<'a, WallTime>,
    b: Cpu<A>,
    m: &'b Model,
}

impl<A: Float> Bench<'_, '_, A> {
    fn rows(&self) -> usize {
        self.m.sequences * self.m.heads.seq
    }

    fn flops(&mut self, name: &str, flops: usize, mut op: impl FnMut(&Cpu<A>)) {
        self.group.throughput(Throughput::Elements(flops as u64)).bench_function(name, |x| x.iter(|| op(&self.b)));
    }

    fn bytes(&mut self, name: &str, bytes: usize, mut op: impl FnMut(&Cpu<A>)) {
        self.group.throughput(Throughput::Bytes(bytes as u64)).bench_function(name, |x| x.iter(|| op(&self.b)));
    }

    /// An op that works in the place of a tensor.
    fn in_place(
        &mut self,
        name: &str,
        bytes: usize,
        x: Act<Cpu<A>>,
        mut op: impl FnMut(&Cpu<A>, Act<Cpu<A>>) -> Act<Cpu<A>>,
    ) {
        let mut x = Some(x);
        self.bytes(name, bytes, |b| x = x.take().map(|x| op(b, x)));
    }

    fn act(&self, rows: usize, cols: usize) -> Act<Cpu<A>> {
        let mut x = self.b.alloc(rows, cols);
        self.b.round(&self.acc(rows, cols), &mut x);
        x
    }

    /// Numbers in -0.5 .. 0.5.
    fn acc(&self, rows: usize, cols: usize) -> Acc<Cpu<A>> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        self.b.upload(&(0..rows * cols).map(|_| next()).collect::<Vec<_>>(), rows, cols)
    }

    fn ids(&self, rows: usize) -> Tensor<Cpu<A>, u32> {
        let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % self.m.vocab) as u32).collect();
        self.b.upload(&ids, rows, 1)
    }

    fn products(&mut self) {
        let (m, t) = (self.m, self.rows());
        let shapes = [
            ("qkv", t, m.heads.qkv_cols(), m.hidden),
            ("o", t, m.hidden, m.heads.out_cols()),
            ("up", t, 2 * m.intermediate, m.hidden),
            ("down", t, m.hidden, m.intermediate),
            ("head", m.chunk, m.vocab, m.hidden),
        ];
        for (name, rows, outputs, inputs) in shapes {
            let (x, w, dy) = (self.act(rows, inputs), self.act(outputs, inputs), self.act(rows, outputs));
            let (mut dw, flops) = (self.acc(outputs, inputs), 2 * rows * outputs * inputs);
            self.flops(&format!("{name}: y = x w^T"), flops, |b| drop(b.matmul_nt(&x, &w)));
            self.flops(&format!("{name}: dx = dy w"), flops, |b| drop(b.matmul_nn(&dy, &w)));
            self.flops(&format!("{name}: dw += dy^T x"), flops, |b| b.matmul_tn_acc(&dy, &x, &mut dw));
        }
    }

    fn attention(&mut self) {
        let (h, t) = (self.m.heads, self.rows());
        let (qkv, starts) = (self.act(t, h.qkv_cols()), self.b.upload(&vec![0; t], t, 1));
        let (o, lse) = self.b.attention(&qkv, &starts, h);
        // Half of the scores are seen; two products forward, five backward.
        let product = t * h.seq * h.out_cols();
        self.flops("attention", 2 * product, |b| drop(b.attention(&qkv, &starts, h)));
        self.flops("attention backward", 5 * product, |b| drop(b.attention_bwd(&o, &o, &lse, &qkv, &starts, h)));
        let table = self.acc(h.seq, h.dim);
        let positions: Vec<u32> = (0..t).map(|row| (row % h.seq) as u32).collect();
        let positions = self.b.upload(&positions, t, 1);
        let bytes = 2 * size_of::<A>() * t * (h.query + h.kv) * h.dim;
        let (r, w) = (Rotary { table: &table, positions: &positions }, self.act(1, h.dim));
        let n = HeadRms { q: &w, k: &w, eps: 1e-5 };
        self.bytes("norms of heads, rope", bytes, |b| drop(b.qk_norm_rope(&qkv, n, r, h)));
        let (mut dq, mut dk, dqkv) = (self.acc(1, h.dim), self.acc(1, h.dim), self.act(t, h.qkv_cols()));
        self.in_place("norms of heads, rope, backward", bytes * 3 / 2, dqkv, |b, dqkv| {
            b.qk_norm_rope_bwd(dqkv, &qkv, n, r, h, [&mut dq, &mut dk])
        });
        self.in_place("rope", bytes, qkv, |b, qkv| b.rope(qkv, r, h));
    }

    fn rows_of_a_layer(&mut self) {
        let (m, t, size) = (self.m, self.rows(), size_of::<A>());
        let (x, w, mut dw) = (self.act(t, m.hidden), self.act(1, m.hidden), self.acc(1, m.hidden));
        let n = Rms { w: &w, eps: 1e-5, offset: 0.0 };
        let (_, rstd) = self.b.rmsnorm(&x, n);
        let bytes = size * x.len();
        self.bytes("rmsnorm", 2 * bytes, |b| drop(b.rmsnorm(&x, n)));
        let r = self.act(t, m.hidden);
        self.in_place("add, rmsnorm", 4 * bytes, r, |b, r| b.add_rmsnorm(&x, r, n).0);
        let dy = self.act(t, m.hidden);
        self.in_place("rmsnorm backward, add", 4 * bytes, dy, |b, dy| b.rmsnorm_bwd_add(&x, dy, &x, &rstd, n, &mut dw));

        let f = m.intermediate;
        let (gate_up, dy) = (self.act(t, 2 * f), self.act(t, f));
        self.bytes("swiglu", 3 * size * t * f, |b| drop(b.swiglu(&gate_up)));
        self.bytes("geglu", 3 * size * t * f, |b| drop(b.geglu(&gate_up)));
        let again = self.act(t, 2 * f);
        self.in_place("geglu backward", 5 * size * t * f, again, |b, gate_up| b.geglu_bwd(&dy, gate_up));
        self.in_place("swiglu backward", 5 * size * t * f, gate_up, |b, gate_up| b.swiglu_bwd(&dy, gate_up));

        let (ids, table, mut dtable) = (self.ids(t), self.act(m.vocab, m.hidden), self.acc(m.vocab, m.hidden));
        self.bytes("embed", 2 * bytes, |b| drop(b.embed(&ids, &table, 0)));
        self.bytes("embed backward", bytes + 8 * x.len(), |b| b.embed_bwd(&ids, &x, 0, &mut dtable));
    }

    fn loss(&mut self) {
        let (rows, cols) = (self.m.chunk, self.m.vocab);
        let (logits, ids, weights) = (self.act(rows, cols), self.ids(rows), self.acc(rows, 1));
        let x = Xent { first: 0, z_loss: 0.0, cap: None };
        let (stats, bytes) = (self.b.xent_stats(&logits, &ids, x), size_of::<A>() * rows * cols);
        self.bytes("xent statistics", bytes, |b| drop(b.xent_stats(&logits, &ids, x)));
        self.in_place("xent gradient", 2 * bytes, logits, |b, logits| b.xent_grad(logits, &stats, &ids, &weights, x));
    }

    fn optimizer(&mut self) {
        let len = self.m.vocab * self.m.hidden;
        let [g, mut master, mut m, mut v] = std::array::from_fn(|_| self.acc(1, len));
        self.b.zero(&mut v);
        let (factor, mut square, mut weights) = (self.acc(1, 3), self.acc(1, 1), self.act(1, len));
        let hp = AdamW {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            correction1: 0.1,
            correction2: 0.05,
            decayed: len,
        };
        let bytes = (28 + size_of::<A>()) * len;
        self.bytes("adamw", bytes, |b| b.adamw(&g, &factor, &mut master, &mut m, &mut v, &mut weights, hp));
        self.bytes("sum of squares", 4 * len, |b| b.sum_squares(&g, 0..len, &mut square));
    }
}

fn on<A: Float>(criterion: &mut Criterion, precision: &str) {
    for m in &models() {
        let group = criterion.benchmark_group(format!("{}-{precision}", m.name));
        let mut bench = Bench { group, b: Cpu::<A>::new(THREADS), m };
        bench.products();
        bench.attention();
        bench.rows_of_a_layer();
        bench.loss();
        bench.optimizer();
    }
}

fn ops(criterion: &mut Criterion) {
    on::<f32>(criterion, "f32");
    on::<bf16>(criterion, "bf16");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = ops
}
criterion_main!(benches);
