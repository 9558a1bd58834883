//! The backward pass of attention, tile by tile (Dao 2023): with P = e^(s - logsumexp) recomputed from the scores
//! s = scale q k^T, D = rowsum(do * o): dv = P^T do, dP = do v^T, dS = P * (dP - D), dq = scale dS k, dk = scale dS^T
//! q. With soft-capped scores c = cap tanh(s / cap), P = e^(c - logsumexp), and dS is also multiplied by 1 - (c /
//! cap)^2. P and dS are rounded as the activations are before their products.

use super::attention::{TILE, Window, key_tiles, load_tile, soft_cap};
use super::small::{Mat, gemm};
use crate::backend::Heads;
use crate::cpu::float::{Float, rounded};
use crate::cpu::ops::elementwise::store;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{exp, vectorized};
use crate::cpu::tiles::{Tile, cut};
use crate::cpu::workers::Workers;
use std::rc::Rc;

/// The inputs and outputs of forward: qkv `[T, (H + 2G) d]`, o `[T, H d]`, logsumexp `[T, H]`, starts `[T]`.
#[derive(Clone, Copy)]
pub struct Saved<'a, A> {
    pub qkv: &'a [A],
    pub o: &'a [A],
    pub lse: &'a [f32],
    pub starts: &'a [u32],
}

/// Scratch of [`attention_bwd`] in f32 elements.
pub fn scratch(h: Heads, threads: usize) -> usize {
    Scratch::size(h) * threads
}

/// dqkv from do `[T, H d]`. A task is one key/value head of one sequence, with all its query heads in
/// order, so the sums in dk and dv have one order.
pub fn attention_bwd<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    do_: &[A],
    saved: Saved<'_, A>,
    h: Heads,
    dqkv: &mut [A],
) {
    let group = h.query / h.kv * h.dim;
    let widths = [vec![group; h.kv], vec![h.dim; 2 * h.kv]].concat();
    let tasks = dqkv.chunks_mut(h.seq * h.qkv_cols()).enumerate().flat_map(|(n, dqkv)| {
        let mut dq = cut(dqkv, h.qkv_cols(), h.seq, &widths);
        let mut dk = dq.split_off(h.kv);
        let dv = dk.split_off(h.kv);
        let (from, to) = (n * h.seq, (n + 1) * h.seq);
        let sequence = Sequence {
            do_: &do_[from * h.out_cols()..to * h.out_cols()],
            qkv: &saved.qkv[from * h.qkv_cols()..to * h.qkv_cols()],
            o: &saved.o[from * h.out_cols()..to * h.out_cols()],
            lse: &saved.lse[from * h.query..to * h.query],
            starts: &saved.starts[from..to],
            h,
        };
        let heads = dq.into_iter().zip(dk.into_iter().zip(dv)).enumerate();
        heads.map(move |(head, (dq, (dk, dv)))| (sequence, head, Gradients { dq, dk, dv }))
    });
    let mut all = pool.take::<f32>(scratch(h, workers.threads()));
    let slots = all.as_mut_slice().chunks_mut(Scratch::size(h));
    workers.each_with(tasks, slots, |(sequence, head, gradients), scratch| {
        sequence.backward(head, Scratch::new(scratch, h), gradients);
    });
}

/// One sequence's rows of do and of [`Saved`].
struct Sequence<'a, A> {
    do_: &'a [A],
    qkv: &'a [A],
    o: &'a [A],
    lse: &'a [f32],
    starts: &'a [u32],
    h: Heads,
}

impl<A> Copy for Sequence<'_, A> {}
impl<A> Clone for Sequence<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

/// The gradients of a key/value head: dq of its query heads `[seq, H / G d]`, dk and dv `[seq, d]`.
struct Gradients<'a, A> {
    dq: Tile<'a, A>,
    dk: Tile<'a, A>,
    dv: Tile<'a, A>,
}

/// A thread's tiles `[TILE, d]` and `[TILE, TILE]`, two numbers of each query, and the sums dk, dv `[seq, d]`.
struct Scratch<'a> {
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    do_: &'a mut [f32],
    dq: &'a mut [f32],
    p: &'a mut [f32],
    ds: &'a mut [f32],
    lse: &'a mut [f32],
    delta: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn size(h: Heads) -> usize {
        TILE * (5 * h.dim + 2 * TILE + 2) + 2 * h.seq * h.dim
    }

    fn new(all: &'a mut [f32], h: Heads) -> Self {
        let mut rest = all;
        let mut next = |rows: usize, cols: usize| rest.split_off_mut(..rows * cols).expect("scratch holds `size`");
        let [q, k, v, do_, dq] = std::array::from_fn(|_| next(TILE, h.dim));
        let [p, ds] = std::array::from_fn(|_| next(TILE, TILE));
        let [lse, delta] = std::array::from_fn(|_| next(TILE, 1));
        let [dk, dv] = std::array::from_fn(|_| next(h.seq, h.dim));
        Scratch { q, k, v, do_, dq, p, ds, lse, delta, dk, dv }
    }
}

impl<A: Float> Sequence<'_, A> {
    fn backward(&self, kv_head: usize, mut s: Scratch<'_>, mut to: Gradients<'_, A>) {
        let (h, d) = (self.h, self.h.dim);
        let heads = h.query / h.kv;
        s.dk.fill(0.0);
        s.dv.fill(0.0);
        for n in 0..heads {
            for first in (0..h.seq).step_by(TILE) {
                let rows = TILE.min(h.seq - first);
                self.queries(kv_head * heads + n, kv_head, first, rows, &mut s);
                s.dq[..rows * d].iter_mut().for_each(|dq| *dq *= h.scale);
                (0..rows).for_each(|r| store(&s.dq[r * d..][..d], &mut to.dq.row(first + r)[n * d..][..d]));
            }
        }
        for row in 0..h.seq {
            store(&s.dk[row * d..][..d], to.dk.row(row));
            store(&s.dv[row * d..][..d], to.dv.row(row));
        }
    }

    /// One tile of queries against the keys that it sees: computes dq / scale of the tile, and adds to dk and dv.
    fn queries(&self, head: usize, kv_head: usize, first: usize, rows: usize, s: &mut Scratch<'_>) {
        let (h, d) = (self.h, self.h.dim);
        let (k_left, v_left) = ((h.query + kv_head) * d, (h.query + h.kv + kv_head) * d);
        let load = |first, left, scale, to: &mut [f32]| load_tile(self.qkv, first, h.qkv_cols(), left, d, scale, to);
        load(first, head * d, h.scale, &mut s.q[..rows * d]);
        load_tile(self.do_, first, h.out_cols(), head * d, d, 1.0, &mut s.do_[..rows * d]);
        for row in 0..rows {
            let o = &self.o[(first + row) * h.out_cols() + head * d..][..d];
            s.delta[row] = row_dot(&s.do_[row * d..][..d], o);
            s.lse[row] = self.lse[(first + row) * h.query + head];
        }
        s.dq.fill(0.0);
        for tile in key_tiles(self.starts, first, rows) {
            let first_key = tile * TILE;
            let keys = TILE.min(h.seq - first_key);
            load(first_key, k_left, 1.0, &mut s.k[..keys * d]);
            load(first_key, v_left, 1.0, &mut s.v[..keys * d]);
            let window = Window { starts: self.starts, first_query: first, first_key, keys };
            s.pair::<A>(rows, h, window);
        }
    }
}

impl Scratch<'_> {
    /// Adds the contribution of one loaded tile of queries and one of keys to dq, dk and dv.
    fn pair<A: Float>(&mut self, rows: usize, h: Heads, window: Window<'_>) {
        let (d, keys) = (h.dim, window.keys);
        let (q, do_) = (Mat::new(self.q, rows, d, d), Mat::new(self.do_, rows, d, d));
        let (k, v) = (Mat::new(self.k, keys, d, d), Mat::new(self.v, keys, d, d));
        let (p, ds) = (&mut self.p[..rows * keys], &mut self.ds[..rows * keys]);
        gemm(&mut Tile::whole(p, rows, keys), 0.0, q, k.t());
        gemm(&mut Tile::whole(ds, rows, keys), 0.0, do_, v.t());
        match h.cap {
            None => score_gradients::<A>(p, ds, window, self.lse, self.delta),
            Some(cap) => {
                soft_cap(p, cap);
                capped_score_gradients::<A>(p, ds, window, self.lse, self.delta, cap);
            }
        }
        let (p, ds) = (Mat::new(p, rows, keys, keys), Mat::new(ds, rows, keys, keys));
        let (from, to) = (window.first_key * d, (window.first_key + keys) * d);
        gemm(&mut Tile::whole(&mut self.dv[from..to], keys, d), 1.0, p.t(), do_);
        gemm(&mut Tile::whole(&mut self.dk[from..to], keys, d), 1.0, ds.t(), q);
        gemm(&mut Tile::whole(&mut self.dq[..rows * d], rows, d), 1.0, ds, k);
    }
}

vectorized! {
    /// Scores become P and dP becomes dS = P (dP - D), both rounded; zero where a query does not see a key.
    fn score_gradients<A: Float>(p: &mut [f32], ds: &mut [f32], window: Window<'_>, lse: &[f32], delta: &[f32]) {
        let rows = p.chunks_exact_mut(window.keys).zip(ds.chunks_exact_mut(window.keys));
        for (row, (p, ds)) in rows.enumerate() {
            let seen = window.seen(row);
            // Whole rows are computed, in whole vectors: masked scores are -inf, so that P = e^-inf is 0, and so is dS.
            p[..seen.start].fill(f32::NEG_INFINITY);
            p[seen.end..].fill(f32::NEG_INFINITY);
            for (p, ds) in p.iter_mut().zip(ds) {
                let exact = exp(*p - lse[row]);
                *p = rounded::<A>(exact);
                *ds = rounded::<A>(exact * (*ds - delta[row]));
            }
        }
    }
}

vectorized! {
    /// [`score_gradients`] of soft-capped scores c: dS = P (dP - D) (1 - (c / cap)^2).
    fn capped_score_gradients<A: Float>(
        p: &mut [f32], ds: &mut [f32], window: Window<'_>, lse: &[f32], delta: &[f32], cap: f32,
    ) {
        let rows = p.chunks_exact_mut(window.keys).zip(ds.chunks_exact_mut(window.keys));
        for (row, (p, ds)) in rows.enumerate() {
            for (c, ds) in p.iter().zip(&mut *ds) {
                let t = c / cap;
                *ds = (*ds - delta[row]) * (1.0 - t * t);
            }
            let seen = window.seen(row);
            p[..seen.start].fill(f32::NEG_INFINITY);
            p[seen.end..].fill(f32::NEG_INFINITY);
            for (p, ds) in p.iter_mut().zip(ds) {
                let exact = exp(*p - lse[row]);
                *p = rounded::<A>(exact);
                *ds = rounded::<A>(exact * *ds);
            }
        }
    }
}

vectorized! {
    fn row_dot<A: Float>(x: &[f32], y: &[A]) -> f32 {
        let mut sums = [0.0f32; 16];
        let (xs, ys) = (x.as_chunks::<16>(), y.as_chunks::<16>());
        for (x, y) in xs.0.iter().zip(ys.0) {
            for i in 0..16 {
                sums[i] = f32::mul_add(x[i], y[i].load(), sums[i]);
            }
        }
        let rest: f32 = xs.1.iter().zip(ys.1).map(|(x, y)| x * y.load()).sum();
        sums.iter().sum::<f32>() + rest
    }
}
