//! Measures ops by their sizes, on matrices that were not just written.

use super::{experts, median};
use engine::backend::{Acc, Act, AdamW, Backend, HeadRms, Heads, LayerNorm, Op, Rms, Rotary, Rule, Tensor, Xent};
use engine::config::{Axis, Config};
use engine::cpu::{Cpu, Float};
use engine::layout::rank_layout::RankLayout;
use engine::mpi::Comm;
use plan::profile::OpTime;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Instant;

/// The number of measurements of each op; all other ops run in between.
const TURNS: usize = 9;
/// This many matrices of a shape take turns, because a step seldom uses the same one again.
const ALIKE: usize = 4;

pub fn time<A: Float>(
    b: &Cpu<A>,
    config: &Config,
    rank_layout: &RankLayout,
    ops: BTreeSet<(Op, [usize; 3])>,
    comm: &Comm,
) -> Vec<OpTime> {
    let bench = Bench::new(b, config, rank_layout);
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); ops.len()];
    for _ in 0..TURNS {
        comm.barrier();
        for (of, (op, sizes)) in seconds.iter_mut().zip(&ops) {
            of.push(bench.once(*op, *sizes));
        }
    }
    let time = |(seconds, (op, sizes)): (_, (Op, _))| OpTime { op: op.name().into(), sizes, seconds: median(seconds) };
    seconds.into_iter().zip(ops).map(time).collect()
}

/// The matrices of each shape, and the index of the next.
type Pool<T> = RefCell<HashMap<(usize, usize), (usize, Vec<T>)>>;

/// The operands of ops.
pub struct Bench<'a, A: Float> {
    pub b: &'a Cpu<A>,
    heads: Heads,
    /// Rows of the vocabulary on this rank, and the number of ranks that share it.
    vocab: usize,
    tensor: usize,
    acts: Pool<Rc<Act<Cpu<A>>>>,
    accs: Pool<Acc<Cpu<A>>>,
}

const EPS: f32 = 1e-5;
const LOSS: Xent = Xent { first: 0, z_loss: 0.0, cap: None };

fn rms<A: Float>(w: &Act<Cpu<A>>) -> Rms<'_, Cpu<A>> {
    Rms { w, eps: EPS, offset: 0.0 }
}

impl<'a, A: Float> Bench<'a, A> {
    fn new(b: &'a Cpu<A>, config: &Config, rank_layout: &RankLayout) -> Self {
        let (m, tensor) = (&config.model, rank_layout.mesh.size(Axis::Tensor));
        let (query, kv) = (m.num_attention_heads / tensor, m.num_key_value_heads.div_ceil(tensor));
        let heads = Heads::full(query, kv, m.head_dim, config.train.seq_length);
        Bench { b, heads, vocab: m.vocab_size / tensor, tensor, acts: Pool::default(), accs: Pool::default() }
    }

    /// Random numbers in -0.5 .. 0.5.
    pub fn numbers(&self, rows: usize, cols: usize) -> Acc<Cpu<A>> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        self.b.upload(&(0..rows * cols).map(|_| next()).collect::<Vec<_>>(), rows, cols)
    }

    pub fn act(&self, rows: usize, cols: usize) -> Rc<Act<Cpu<A>>> {
        let mut acts = self.acts.borrow_mut();
        let (next, all) = acts.entry((rows, cols)).or_default();
        *next = (*next + 1) % ALIKE;
        if all.len() <= *next {
            let mut x = self.b.alloc(rows, cols);
            self.b.round(&self.numbers(rows, cols), &mut x);
            all.push(x.into());
            return all.last().expect("it was pushed").clone();
        }
        all[*next].clone()
    }

    /// A matrix that ops add to. A new one replaces those that are in use, so that sums do not grow.
    fn sums(&self, rows: usize, cols: usize) -> Acc<Cpu<A>> {
        let mut accs = self.accs.borrow_mut();
        let (next, all) = accs.entry((rows, cols)).or_default();
        *next = (*next + 1) % ALIKE;
        if all.len() < ALIKE { self.numbers(rows, cols) } else { all.remove(0) }
    }

    fn put_back(&self, x: Acc<Cpu<A>>) {
        self.accs.borrow_mut().entry(x.shape()).or_default().1.push(x);
    }

    fn ids(&self, rows: usize) -> Tensor<Cpu<A>, u32> {
        let ids: Vec<u32> = (0..rows).map(|row| (row * 7919 % self.vocab) as u32).collect();
        self.b.upload(&ids, rows, 1)
    }

    /// A matrix that an op may overwrite.
    pub fn own(&self, rows: usize, cols: usize) -> Act<Cpu<A>> {
        self.b.copy(&self.act(rows, cols))
    }

    pub fn timed<T>(&self, work: impl FnOnce(&Cpu<A>) -> T) -> f64 {
        let start = Instant::now();
        let done = work(self.b);
        let seconds = start.elapsed().as_secs_f64();
        drop(done);
        seconds
    }

    pub fn adding(&self, rows: usize, cols: usize, work: impl FnOnce(&Cpu<A>, &mut Acc<Cpu<A>>)) -> f64 {
        let mut sums = self.sums(rows, cols);
        let seconds = self.timed(|b| work(b, &mut sums));
        self.put_back(sums);
        seconds
    }

    fn once(&self, op: Op, [rows, cols, depth]: [usize; 3]) -> f64 {
        let act = |rows, cols| self.act(rows, cols);
        let norm = || (self.act(rows, cols), self.numbers(rows, 1), self.act(1, cols));
        match op {
            Op::MatmulNt => {
                let (x, w) = (act(rows, depth), act(cols, depth));
                self.timed(|b| b.matmul_nt(&x, &w))
            }
            Op::MatmulNn => {
                let (x, w) = (act(rows, depth), act(depth, cols));
                self.timed(|b| b.matmul_nn(&x, &w))
            }
            Op::MatmulTnAcc => {
                let (dy, x) = (act(depth, rows), act(depth, cols));
                self.adding(rows, cols, |b, dw| b.matmul_tn_acc(&dy, &x, dw))
            }
            Op::GroupedNt
            | Op::GroupedNn
            | Op::GroupedTnAcc
            | Op::GroupedBiasBwd
            | Op::GroupedBiasDot
            | Op::RouterLogits
            | Op::Route
            | Op::RouteBwd
            | Op::SortChoices
            | Op::TakeRows
            | Op::SumRows
            | Op::SwigluWeighted
            | Op::SwigluWeightedBwd
            | Op::ClampedSwigluWeighted
            | Op::ClampedSwigluWeightedBwd => experts::once(self, op, [rows, cols, depth]),
            Op::Add => {
                let (x, y) = (self.own(rows, cols), act(rows, cols));
                self.timed(|b| b.add(x, &y))
            }
            Op::Rmsnorm => {
                let (x, _, w) = norm();
                self.timed(|b| b.rmsnorm(&x, rms(&w)))
            }
            Op::AddRmsnorm => {
                let ((x, _, w), r) = (norm(), self.own(rows, cols));
                self.timed(|b| b.add_rmsnorm(&x, r, rms(&w)))
            }
            Op::RmsnormRecompute => {
                let (x, rstd, w) = norm();
                self.timed(|b| b.rmsnorm_recompute(&x, &rstd, rms(&w)))
            }
            Op::RmsnormBwd => {
                let ((x, rstd, w), dy) = (norm(), self.own(rows, cols));
                self.adding(1, cols, |b, dw| drop(b.rmsnorm_bwd(dy, &x, &rstd, rms(&w), dw)))
            }
            Op::RmsnormBwdAdd => {
                let ((x, rstd, w), dy, dres) = (norm(), self.own(rows, cols), act(rows, cols));
                self.adding(1, cols, |b, dw| drop(b.rmsnorm_bwd_add(&dres, dy, &x, &rstd, rms(&w), dw)))
            }
            Op::Layernorm => {
                let (x, bias, w) = (act(rows, cols), act(1, cols), act(1, cols));
                self.timed(|b| b.layernorm(&x, LayerNorm { w: &w, bias: &bias, eps: EPS }))
            }
            Op::LayernormBwd => {
                let (x, w, dy) = (act(rows, cols), act(1, cols), self.own(rows, cols));
                let (n, stats) = (LayerNorm { w: &w, bias: &w, eps: EPS }, self.numbers(rows, 2));
                let mut dbias = self.sums(1, cols);
                self.adding(1, cols, |b, dw| drop(b.layernorm_bwd(None, dy, &x, &stats, n, [dw, &mut dbias])))
            }
            Op::AddBias => {
                let (x, bias) = (self.own(rows, cols), act(1, cols));
                self.timed(|b| b.add_bias(x, &bias))
            }
            Op::BiasBwd => {
                let dy = act(rows, cols);
                self.adding(1, cols, |b, dbias| b.bias_bwd(&dy, dbias))
            }
            Op::Scale => {
                let x = self.own(rows, cols);
                self.timed(|b| b.scale(x, 2.0))
            }
            Op::Rope | Op::RopeBwd | Op::QkNormRope | Op::QkNormRopeBwd | Op::Attention | Op::AttentionBwd => {
                self.attention(op, rows)
            }
            Op::AddSinks => {
                let (o, lse, sinks) = (self.own(rows, cols), self.numbers(rows, self.heads.query), self.sinks());
                self.timed(|b| b.add_sinks(o, lse, &sinks))
            }
            Op::SinksBwd => {
                let (do_, o, lse) = (act(rows, cols), act(rows, cols), self.numbers(rows, self.heads.query));
                let sinks = self.sinks();
                self.adding(1, sinks.len(), |b, dsinks| b.sinks_bwd(&do_, &o, &lse, &sinks, dsinks))
            }
            Op::Geglu => {
                let x = act(rows, cols);
                self.timed(|b| b.geglu(&x))
            }
            Op::GegluBwd => {
                let (dy, gate_up) = (act(rows, cols / 2), self.own(rows, cols));
                self.timed(|b| b.geglu_bwd(&dy, gate_up))
            }
            Op::Gelu => {
                let x = act(rows, cols);
                self.timed(|b| b.gelu(&x))
            }
            Op::GeluBwd => {
                let (dy, x) = (act(rows, cols), self.own(rows, cols));
                self.timed(|b| b.gelu_bwd(&dy, x))
            }
            Op::Swiglu => {
                let x = act(rows, cols);
                self.timed(|b| b.swiglu(&x))
            }
            Op::SwigluBwd => {
                let (dy, gate_up) = (act(rows, cols / 2), self.own(rows, cols));
                self.timed(|b| b.swiglu_bwd(&dy, gate_up))
            }
            Op::Embed => {
                let (ids, table) = (self.ids(rows), act(self.vocab, cols));
                self.timed(|b| b.embed(&ids, &table, 0))
            }
            Op::EmbedBwd => {
                let (ids, dy) = (self.ids(rows), act(rows, cols));
                self.adding(self.vocab, cols, |b, dtable| b.embed_bwd(&ids, &dy, 0, dtable))
            }
            Op::XentStats | Op::XentCombine | Op::XentTotals | Op::XentGrad => self.loss(op, rows, cols),
            Op::Copy => {
                let x = act(rows, cols);
                self.timed(|b| b.copy(&x))
            }
            Op::Round => {
                let (x, mut y) = (self.sums(rows, cols), self.own(rows, cols));
                self.timed(|b| b.round(&x, &mut y))
            }
            Op::Widen => {
                let x = act(rows, cols);
                self.adding(rows, cols, |b, y| b.widen(&x, y))
            }
            Op::Zero => self.adding(rows, cols, |b, y| b.zero(y)),
            Op::Upload | Op::Write | Op::Fetch => {
                let host = vec![0u32; rows * cols];
                self.timed(|b| b.upload(&host, rows, cols))
            }
            Op::Adamw | Op::SumSquares | Op::Checksum | Op::Judge | Op::Pick | Op::Put => {
                self.optimizer(op, rows * cols)
            }
        }
    }

    /// A number for each head of a query.
    fn sinks(&self) -> Rc<Act<Cpu<A>>> {
        self.act(1, self.heads.query)
    }

    fn attention(&self, op: Op, rows: usize) -> f64 {
        let h = self.heads;
        let table = self.numbers(h.seq, h.dim);
        let (qkv, own) = (self.act(rows, h.qkv_cols()), self.own(rows, h.qkv_cols()));
        let starts = self.b.upload(&vec![0; rows], rows, 1);
        let positions: Vec<u32> = (0..rows).map(|row| (row % h.seq) as u32).collect();
        let positions = self.b.upload(&positions, rows, 1);
        let (r, w) = (Rotary { table: &table, positions: &positions }, self.act(1, h.dim));
        let n = HeadRms { q: &w, k: &w, eps: EPS };
        match op {
            Op::QkNormRope => self.timed(|b| b.qk_norm_rope(&qkv, n, r, h)),
            Op::QkNormRopeBwd => {
                let (mut dq, mut dk) = (self.sums(1, h.dim), self.sums(1, h.dim));
                self.timed(|b| b.qk_norm_rope_bwd(own, &qkv, n, r, h, [&mut dq, &mut dk]))
            }
            Op::Rope => self.timed(|b| b.rope(own, r, h)),
            Op::RopeBwd => self.timed(|b| b.rope_bwd(own, r, h)),
            Op::Attention => self.timed(|b| b.attention(&qkv, &starts, h)),
            Op::AttentionBwd => {
                let (o, lse) = self.b.attention(&qkv, &starts, h);
                let do_ = self.act(rows, h.out_cols());
                self.timed(|b| b.attention_bwd(&do_, &o, &lse, &qkv, &starts, h))
            }
            other => unreachable!("{} is not an op of attention", other.name()),
        }
    }

    fn loss(&self, op: Op, rows: usize, cols: usize) -> f64 {
        let (logits, ids, weights) = (self.act(rows, cols), self.ids(rows), self.numbers(rows, 1));
        match op {
            Op::XentStats => self.timed(|b| b.xent_stats(&logits, &ids, LOSS)),
            Op::XentGrad => {
                let (own, stats) = (self.own(rows, cols), self.b.xent_stats(&logits, &ids, LOSS));
                self.timed(|b| b.xent_grad(own, &stats, &ids, &weights, LOSS))
            }
            Op::XentTotals => {
                let stats = self.numbers(rows, 3);
                self.adding(1, 3, |b, totals| b.xent_totals(&stats, &weights, totals))
            }
            Op::XentCombine => {
                let stats = self.numbers(rows, 3);
                self.timed(|b| b.xent_combine(&stats, self.tensor))
            }
            other => unreachable!("{} is not an op of the loss", other.name()),
        }
    }

    fn optimizer(&self, op: Op, len: usize) -> f64 {
        let (part, ranges) = (self.numbers(len, 1), Vec::from_iter(std::iter::once(0..len)));
        match op {
            Op::SumSquares => self.adding(1, 1, |b, out| b.sum_squares(&part, 0..len, out)),
            Op::Checksum => self.adding(len, 1, |b, x| drop(b.checksum(x, 0..len))),
            Op::Judge => {
                let (square, totals) = (self.numbers(1, 1), self.numbers(1, 3));
                let rule = Rule { clip: 1.0, window: 128, threshold: 6.0, skips: false };
                let mut state = self.numbers(1, Rule::state_len(rule.window));
                self.b.zero(&mut state);
                self.timed(|b| b.judge(&square, &totals, &mut state, rule))
            }
            Op::Pick => self.adding(2 * len, 1, |b, x| drop(b.pick(x, &ranges))),
            Op::Put => self.adding(2 * len, 1, |b, x| b.put(&part, &ranges, x)),
            Op::Adamw => {
                let [g, mut master, mut m, mut v] = std::array::from_fn(|_| self.numbers(1, len));
                self.b.zero(&mut v);
                let (factor, mut weights) = (self.b.upload(&[1.0, 1.0, 0.0], 1, 3), self.own(1, len));
                let (beta1, beta2, eps, weight_decay) = (0.9, 0.95, 1e-8, 0.1);
                let (lr, correction1, correction2) = (1e-3, 0.1, 0.05);
                let hp = AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed: len };
                self.timed(|b| b.adamw(&g, &factor, &mut master, &mut m, &mut v, &mut weights, hp))
            }
            other => unreachable!("{} is not an op of the optimizer", other.name()),
        }
    }
}
