//! Causal attention in tiles (Dao 2023): o = softmax(s) v with s = scale q k^T, or cap tanh(scale q k^T / cap), where
//! a query at position t sees the positions `starts[t] ..= t`. A tile of queries goes over its tiles of keys with a
//! running maximum m and sum l, so that scratch is a few tiles and the logsumexp m + log l is all that backward needs.

use super::small::{Mat, gemm};
use crate::backend::Heads;
use crate::cpu::float::{Float, rounded};
use crate::cpu::pool::Pool;
use crate::cpu::simd::{LANES, exp, max_lanes, sum_lanes, tanh, vectorized};
use crate::cpu::tiles::{Tile, cut};
use crate::cpu::workers::Workers;
use std::ops::Range;
use std::rc::Rc;

/// The number of queries, and of keys, in a tile.
pub(super) const TILE: usize = 64;

/// The keys of a tile that each query of a tile attends to.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    /// First visible position of each query of the sequence.
    pub starts: &'a [u32],
    pub first_query: usize,
    pub first_key: usize,
    pub keys: usize,
}

impl Window<'_> {
    /// Keys of the tile that the tile's query `row` sees.
    #[inline(always)]
    pub fn seen(&self, row: usize) -> Range<usize> {
        let query = self.first_query + row;
        let end = (query + 1).saturating_sub(self.first_key).min(self.keys);
        (self.starts[query] as usize).saturating_sub(self.first_key).min(end)..end
    }
}

/// Tiles of keys that the queries `first .. first + rows` see: from the first query's start (starts ascend) to the
/// diagonal.
pub(super) fn key_tiles(starts: &[u32], first: usize, rows: usize) -> Range<usize> {
    starts[first] as usize / TILE..(first + rows).div_ceil(TILE)
}

vectorized! {
    /// Columns `left ..` of the rows `first ..` of a matrix of `cols` columns, times `scale`: `[.., d]`.
    pub(super) fn load_tile<A: Float>(
        from: &[A], first: usize, cols: usize, left: usize, d: usize, scale: f32, to: &mut [f32],
    ) {
        for (row, to) in to.chunks_exact_mut(d).enumerate() {
            let from = &from[(first + row) * cols + left..][..d];
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.load() * scale;
            }
        }
    }
}

/// Scratch of [`attention`] in f32 elements.
pub fn scratch(h: Heads, threads: usize) -> usize {
    Scratch::size(h.dim) * threads
}

/// o `[T, H d]` and the logsumexp `[T, H]` of qkv `[T, (H + 2G) d]`.
pub fn attention<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    qkv: &[A],
    starts: &[u32],
    h: Heads,
    o: &mut [A],
    lse: &mut [f32],
) {
    let sequences = qkv.chunks(h.seq * h.qkv_cols()).zip(starts.chunks(h.seq));
    let outputs = o.chunks_mut(h.seq * h.out_cols()).zip(lse.chunks_mut(h.seq * h.query));
    let tasks = sequences.zip(outputs).flat_map(|((qkv, starts), (o, lse))| {
        let o = cut(o, h.out_cols(), TILE, &vec![h.dim; h.query]);
        let lse = cut(lse, h.query, TILE, &vec![1; h.query]);
        let outputs = o.into_iter().zip(lse).enumerate();
        outputs.map(move |(n, (o, lse))| {
            (Queries { qkv, starts, h, head: n % h.query, first: n / h.query * TILE }, o, lse)
        })
    });
    let mut all = pool.take::<f32>(scratch(h, workers.threads()));
    let slots = all.as_mut_slice().chunks_mut(Scratch::size(h.dim));
    workers.each_with(tasks, slots, |(queries, o, lse), scratch| {
        queries.attend(Scratch::new(scratch, h.dim), o, lse);
    });
}

/// A tile of queries of one head of one sequence.
struct Queries<'a, A> {
    qkv: &'a [A],
    starts: &'a [u32],
    h: Heads,
    head: usize,
    first: usize,
}

/// A thread's tiles `[TILE, d]` and `[TILE, TILE]`, and numbers of each query.
struct Scratch<'a> {
    q: &'a mut [f32],
    k: &'a mut [f32],
    v: &'a mut [f32],
    sums: &'a mut [f32],
    scores: &'a mut [f32],
    m: &'a mut [f32],
    l: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn size(d: usize) -> usize {
        TILE * (4 * d + TILE + 2)
    }

    fn new(all: &'a mut [f32], d: usize) -> Self {
        let mut rest = all;
        let mut next = |cols: usize| rest.split_off_mut(..TILE * cols).expect("scratch holds `size` elements");
        let [q, k, v, sums] = std::array::from_fn(|_| next(d));
        Scratch { q, k, v, sums, scores: next(TILE), m: next(1), l: next(1) }
    }
}

impl<A: Float> Queries<'_, A> {
    fn attend(&self, s: Scratch<'_>, mut o: Tile<'_, A>, mut lse: Tile<'_, f32>) {
        let (h, d, rows) = (self.h, self.h.dim, o.rows());
        let kv_head = self.head / (h.query / h.kv);
        let (k_left, v_left) = ((h.query + kv_head) * d, (h.query + h.kv + kv_head) * d);
        let load = |first, left, scale, to: &mut [f32]| load_tile(self.qkv, first, h.qkv_cols(), left, d, scale, to);
        load(self.first, self.head * d, h.scale, &mut s.q[..rows * d]);
        s.sums.fill(0.0);
        s.m.fill(f32::NEG_INFINITY);
        s.l.fill(0.0);
        for tile in key_tiles(self.starts, self.first, rows) {
            let first_key = tile * TILE;
            let keys = TILE.min(h.seq - first_key);
            load(first_key, k_left, 1.0, &mut s.k[..keys * d]);
            load(first_key, v_left, 1.0, &mut s.v[..keys * d]);
            let scores = &mut s.scores[..rows * keys];
            let (q, k) = (Mat::new(s.q, rows, d, d), Mat::new(s.k, keys, d, d));
            gemm(&mut Tile::whole(scores, rows, keys), 0.0, q, k.t());
            if let Some(cap) = h.cap {
                soft_cap(scores, cap);
            }
            let window = Window { starts: self.starts, first_query: self.first, first_key, keys };
            softmax_tile::<A>(scores, window, s.m, s.l, s.sums, d);
            let (p, v) = (Mat::new(scores, rows, keys, keys), Mat::new(s.v, keys, d, d));
            gemm(&mut Tile::whole(&mut s.sums[..rows * d], rows, d), 1.0, p, v);
        }
        for row in 0..rows {
            let sums = &s.sums[row * d..][..d];
            o.row(row).iter_mut().zip(sums).for_each(|(o, sum)| *o = A::store(sum / s.l[row]));
            lse.row(row)[0] = s.m[row] + s.l[row].ln();
        }
    }
}

vectorized! {
    /// s = cap tanh(s / cap).
    pub(super) fn soft_cap(scores: &mut [f32], cap: f32) {
        for s in scores {
            *s = cap * tanh(*s / cap);
        }
    }
}

vectorized! {
    /// Scores become P = e^(score - m), rounded as the activations are, and zero where a query does not
    /// see a key; the running m, l and sums `[.., d]` move to the new maximum.
    fn softmax_tile<A: Float>(
        scores: &mut [f32], window: Window<'_>, m: &mut [f32], l: &mut [f32], sums: &mut [f32], d: usize,
    ) {
        for (row, scores) in scores.chunks_exact_mut(window.keys).enumerate() {
            let seen = window.seen(row);
            if seen.is_empty() {
                scores.fill(0.0);
                continue;
            }
            // Whole rows are computed, in whole vectors: masked scores are -inf, and e^-inf is 0.
            scores[..seen.start].fill(f32::NEG_INFINITY);
            scores[seen.end..].fill(f32::NEG_INFINITY);
            let max = max_of(scores, m[row]);
            let sum = exp_all::<A>(scores, max);
            let shrink = exp(m[row] - max);
            l[row] = l[row].mul_add(shrink, sum);
            m[row] = max;
            sums[row * d..][..d].iter_mut().for_each(|sum| *sum *= shrink);
        }
    }
}

#[inline(always)]
fn max_of(x: &[f32], floor: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut lanes = [floor; LANES];
    for x in whole {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    rest.iter().fold(max_lanes(lanes), |max, &x| if x > max { x } else { max })
}

/// x = e^(x - max), rounded; the sum before rounding.
#[inline(always)]
fn exp_all<A: Float>(x: &mut [f32], max: f32) -> f32 {
    let (whole, rest) = x.as_chunks_mut::<LANES>();
    let mut sums = [0.0f32; LANES];
    for x in whole {
        for i in 0..LANES {
            let p = exp(x[i] - max);
            sums[i] += p;
            x[i] = rounded::<A>(p);
        }
    }
    let mut sum = sum_lanes(sums);
    for x in rest {
        let p = exp(*x - max);
        sum += p;
        *x = rounded::<A>(p);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_tiles() {
        let starts = [0, 0, 1, 2, 3];
        let window = Window { starts: &starts, first_query: 2, first_key: 1, keys: 3 };
        assert_eq!([0, 1, 2].map(|row| window.seen(row)), [0..2, 1..3, 2..3]);
        let after = Window { starts: &starts, first_query: 0, first_key: 3, keys: 2 };
        assert!((0..3).all(|row| after.seen(row).is_empty()));
        let starts: Vec<u32> = (0..300).map(|t: u32| t.saturating_sub(70)).collect();
        assert_eq!(key_tiles(&starts, 0, 64), 0..1);
        assert_eq!(key_tiles(&starts, 192, 64), 1..4);
        assert_eq!(key_tiles(&starts, 256, 44), 2..5);
    }
}
