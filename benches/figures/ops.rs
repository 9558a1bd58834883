//! Ops by their name and sizes, timed on matrices that were not just made.

use super::median;
use engine::backend::{Acc, Act, AdamW, Backend, Heads, Tensor, Xent};
use engine::config::{Axis, Config};
use engine::cpu::{Cpu, Float};
use engine::layout::rank_layout::RankLayout;
use engine::mpi::Comm;
use plan::figures::OpFigure;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Instant;

/// How often each op is done; between two times all others are.
const TURNS: usize = 9;
/// As many matrices of a shape take turns: in a step, too, it is seldom the same one.
const ALIKE: usize = 4;

/// Seconds of each.
pub fn time<A: Float>(
    b: &Cpu<A>,
    config: &Config,
    rank_layout: &RankLayout,
    ops: BTreeSet<(&'static str, [usize; 3])>,
    comm: &Comm,
) -> Vec<OpFigure> {
    let shop = Shop::new(b, config, rank_layout);
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); ops.len()];
    for _ in 0..TURNS {
        comm.barrier();
        for (of, (op, sizes)) in seconds.iter_mut().zip(&ops) {
            of.push(shop.once(op, *sizes));
        }
    }
    let figure = |(seconds, (op, sizes)): (_, &(&str, _))| OpFigure {
        op: op.to_string(),
        sizes: *sizes,
        seconds: median(seconds),
    };
    seconds.into_iter().zip(&ops).map(figure).collect()
}

/// Matrices of a shape, and which is next.
type Shelf<T> = RefCell<HashMap<(usize, usize), (usize, Vec<T>)>>;

/// What ops need beside their sizes.
struct Shop<'a, A: Float> {
    b: &'a Cpu<A>,
    heads: Heads,
    /// Rows of the vocabulary held here, and among how many ranks it is cut.
    vocab: usize,
    tensor: usize,
    acts: Shelf<Rc<Act<Cpu<A>>>>,
    accs: Shelf<Acc<Cpu<A>>>,
}

impl<'a, A: Float> Shop<'a, A> {
    fn new(b: &'a Cpu<A>, config: &Config, rank_layout: &RankLayout) -> Self {
        let (m, tensor) = (&config.model, rank_layout.mesh.size(Axis::Tensor));
        let heads = Heads {
            query: m.num_attention_heads / tensor,
            kv: m.num_key_value_heads.div_ceil(tensor),
            dim: m.head_dim,
            seq: config.train.seq_length,
        };
        Shop { b, heads, vocab: m.vocab_size / tensor, tensor, acts: Shelf::default(), accs: Shelf::default() }
    }

    /// Numbers in -0.5 .. 0.5.
    fn numbers(&self, rows: usize, cols: usize) -> Acc<Cpu<A>> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as f32 / u32::MAX as f32 - 0.5
        };
        self.b.upload(&(0..rows * cols).map(|_| next()).collect::<Vec<_>>(), rows, cols)
    }

    fn act(&self, rows: usize, cols: usize) -> Rc<Act<Cpu<A>>> {
        let mut acts = self.acts.borrow_mut();
        let (next, all) = acts.entry((rows, cols)).or_default();
        *next = (*next + 1) % ALIKE;
        if all.len() <= *next {
            let mut x = self.b.alloc(rows, cols);
            self.b.round(&self.numbers(rows, cols), &mut x);
            all.push(x.into());
            return all.last().expect("it was put there").clone();
        }
        all[*next].clone()
    }

    /// Sums that are added to, which are kept from growing.
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

    /// What an op is done in the place of.
    fn own(&self, rows: usize, cols: usize) -> Act<Cpu<A>> {
        self.b.copy(&self.act(rows, cols))
    }

    fn timed<T>(&self, work: impl FnOnce(&Cpu<A>) -> T) -> f64 {
        let start = Instant::now();
        let done = work(self.b);
        let seconds = start.elapsed().as_secs_f64();
        drop(done);
        seconds
    }

    fn adding(&self, rows: usize, cols: usize, work: impl FnOnce(&Cpu<A>, &mut Acc<Cpu<A>>)) -> f64 {
        let mut sums = self.sums(rows, cols);
        let seconds = self.timed(|b| work(b, &mut sums));
        self.put_back(sums);
        seconds
    }

    fn once(&self, op: &str, sizes: [usize; 3]) -> f64 {
        let [rows, cols, depth] = sizes;
        match op {
            "matmul_nt" => self.timed({
                let (x, w) = (self.act(rows, depth), self.act(cols, depth));
                move |b| b.matmul_nt(&x, &w)
            }),
            "matmul_nn" => self.timed({
                let (x, w) = (self.act(rows, depth), self.act(depth, cols));
                move |b| b.matmul_nn(&x, &w)
            }),
            "matmul_tn_acc" => {
                let (dy, x) = (self.act(depth, rows), self.act(depth, cols));
                self.adding(rows, cols, |b, dw| b.matmul_tn_acc(&dy, &x, dw))
            }
            "attention" | "attention_bwd" | "rope" | "rope_bwd" => self.attention(op, rows),
            "xent_stats" | "xent_grad" | "xent_combine" | "xent_totals" => self.loss(op, rows, cols),
            "adamw" | "sum_squares" | "clip_factor" | "pick" | "put" => self.optimizer(op, rows * cols),
            _ => self.of_rows(op, rows, cols),
        }
    }

    fn of_rows(&self, op: &str, rows: usize, cols: usize) -> f64 {
        let (x, w) = (self.act(rows, cols), self.act(1, cols));
        let rstd = || self.numbers(rows, 1);
        match op {
            "add" => self.timed({
                let own = self.own(rows, cols);
                move |b| b.add(own, &x)
            }),
            "rmsnorm" => self.timed(|b| b.rmsnorm(&x, &w, 1e-5)),
            "add_rmsnorm" => self.timed({
                let own = self.own(rows, cols);
                |b| b.add_rmsnorm(&x, own, &w, 1e-5)
            }),
            "rmsnorm_recompute" => self.timed({
                let rstd = rstd();
                move |b| b.rmsnorm_recompute(&x, &rstd, &w)
            }),
            "rmsnorm_bwd" | "rmsnorm_bwd_add" => {
                let (own, rstd, dres) = (self.own(rows, cols), rstd(), self.act(rows, cols));
                self.adding(1, cols, |b, dw| {
                    drop(match op {
                        "rmsnorm_bwd" => b.rmsnorm_bwd(own, &x, &rstd, &w, dw),
                        _ => b.rmsnorm_bwd_add(&dres, own, &x, &rstd, &w, dw),
                    })
                })
            }
            "swiglu" => self.timed(|b| b.swiglu(&x)),
            "swiglu_bwd" => self.timed({
                let (dy, own) = (self.act(rows, cols / 2), self.own(rows, cols));
                move |b| b.swiglu_bwd(&dy, own)
            }),
            _ => self.of_elements(op, rows, cols),
        }
    }

    fn of_elements(&self, op: &str, rows: usize, cols: usize) -> f64 {
        let x = self.act(rows, cols);
        match op {
            "embed" => self.timed({
                let (ids, table) = (self.ids(rows), self.act(self.vocab, cols));
                move |b| b.embed(&ids, &table, 0)
            }),
            "embed_bwd" => {
                let ids = self.ids(rows);
                self.adding(self.vocab, cols, |b, dtable| b.embed_bwd(&ids, &x, 0, dtable))
            }
            "copy" => self.timed(|b| b.copy(&x)),
            "round" => self.timed({
                let (from, mut to) = (self.sums(rows, cols), self.own(rows, cols));
                move |b| b.round(&from, &mut to)
            }),
            "widen" => self.adding(rows, cols, |b, y| b.widen(&x, y)),
            "zero" => self.adding(rows, cols, |b, y| b.zero(y)),
            "upload" | "write" | "fetch" => self.timed({
                let host = vec![0u32; rows * cols];
                move |b| b.upload(&host, rows, cols)
            }),
            _ => panic!("nobody has said here how {op} is timed"),
        }
    }

    fn attention(&self, op: &str, rows: usize) -> f64 {
        let h = self.heads;
        let table = self.numbers(h.seq, h.dim);
        let (qkv, starts) = (self.act(rows, h.qkv_cols()), self.b.upload(&vec![0; rows], rows, 1));
        let own = || self.own(rows, h.qkv_cols());
        match op {
            "attention" => self.timed(|b| b.attention(&qkv, &starts, h)),
            "attention_bwd" => {
                let (o, lse) = self.b.attention(&qkv, &starts, h);
                let do_ = self.act(rows, h.out_cols());
                self.timed(|b| b.attention_bwd(&do_, &o, &lse, &qkv, &starts, h))
            }
            "rope" => self.timed({
                let own = own();
                move |b| b.rope(own, &table, h)
            }),
            _ => self.timed({
                let own = own();
                move |b| b.rope_bwd(own, &table, h)
            }),
        }
    }

    fn loss(&self, op: &str, rows: usize, cols: usize) -> f64 {
        let (logits, ids, weights) = (self.act(rows, cols), self.ids(rows), self.numbers(rows, 1));
        match op {
            "xent_stats" => self.timed(|b| b.xent_stats(&logits, &ids, 0)),
            "xent_grad" => {
                let (own, stats) = (self.own(rows, cols), self.b.xent_stats(&logits, &ids, 0));
                self.timed(|b| b.xent_grad(own, &stats, &ids, &weights, Xent { first: 0, z_loss: 0.0 }))
            }
            "xent_totals" => {
                let stats = self.numbers(rows, 3);
                self.adding(1, 3, |b, totals| b.xent_totals(&stats, &weights, totals))
            }
            _ => {
                let stats = self.numbers(rows, 3);
                self.timed(|b| b.xent_combine(&stats, self.tensor))
            }
        }
    }

    fn optimizer(&self, op: &str, len: usize) -> f64 {
        let factor = || self.b.upload(&[1.0, 1.0], 1, 2);
        match op {
            "sum_squares" => {
                let g = self.numbers(len, 1);
                self.adding(1, 1, |b, out| b.sum_squares(&g, 0..len, out))
            }
            "clip_factor" => {
                let (square, totals) = (self.numbers(1, 1), self.numbers(1, 3));
                self.timed(|b| b.clip_factor(&square, &totals, 1.0))
            }
            "pick" | "put" => {
                let (part, ranges) = (self.numbers(len, 1), Vec::from_iter(std::iter::once(0..len)));
                self.adding(2 * len, 1, |b, x| match op {
                    "pick" => drop(b.pick(x, &ranges)),
                    _ => b.put(&part, &ranges, x),
                })
            }
            _ => self.timed({
                let [g, mut master, mut m, mut v] = std::array::from_fn(|_| self.numbers(1, len));
                self.b.zero(&mut v);
                let (factor, mut weights) = (factor(), self.own(1, len));
                let (beta1, beta2, eps, weight_decay) = (0.9, 0.95, 1e-8, 0.1);
                let (lr, correction1, correction2) = (1e-3, 0.1, 0.05);
                let hp = AdamW { lr, beta1, beta2, eps, weight_decay, correction1, correction2, decayed: len };
                move |b| b.adamw(&g, &factor, &mut master, &mut m, &mut v, &mut weights, hp)
            }),
        }
    }
}
