//! Attention of single queries to cached keys and values: o = softmax(s) v with s = scale q k^T, or
//! cap tanh(scale q k^T / cap). A task is one row with the query heads of one key/value head.

use super::attention::soft_cap;
use crate::backend::Heads;
use crate::cpu::float::{Float, rounded};
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;
use crate::cpu::workers::Workers;
use std::ops::Range;
use std::rc::Rc;

/// Writes the columns of k and v of qkv `[N, (H + 2G) d]` to rows of the cache `[C, 2G d]`.
pub fn keep<A: Float>(qkv: &[A], places: &[u32], h: Heads, cache: &mut [A]) {
    let width = 2 * h.kv * h.dim;
    for (row, &place) in qkv.chunks_exact(h.qkv_cols()).zip(places) {
        cache[place as usize * width..][..width].copy_from_slice(&row[h.out_cols()..]);
    }
}

/// o `[N, H d]` and the logsumexp `[N, H]`; row i sees the rows `seen[i]` of the cache.
pub fn attention<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    (qkv, cache): (&[A], &[A]),
    seen: &[Range<usize>],
    h: Heads,
    (o, lse): (&mut [A], &mut [f32]),
) {
    let (group, most) = (h.query / h.kv, seen.iter().map(Range::len).max().unwrap_or(0));
    let outputs = o.chunks_mut(group * h.dim).zip(lse.chunks_mut(group)).enumerate();
    let tasks = outputs.map(|(task, (o, lse))| {
        let (row, head) = (task / h.kv, task % h.kv);
        let q = &qkv[row * h.qkv_cols() + head * group * h.dim..][..group * h.dim];
        (Queries { q, cache, seen: seen[row].clone(), head, h }, o, lse)
    });
    let each = 2 * h.dim + most;
    let mut scratch = pool.take::<f32>(each * workers.threads());
    workers.each_with(tasks, scratch.as_mut_slice().chunks_mut(each.max(1)), |(queries, o, lse), scratch| {
        queries.attend(scratch, o, lse);
    });
}

/// The queries of one row that share a key/value head.
struct Queries<'a, A> {
    q: &'a [A],
    cache: &'a [A],
    seen: Range<usize>,
    /// The key/value head.
    head: usize,
    h: Heads,
}

impl<A: Float> Queries<'_, A> {
    fn attend(&self, scratch: &mut [f32], o: &mut [A], lse: &mut [f32]) {
        let (d, keys) = (self.h.dim, self.seen.len());
        let (q, rest) = scratch.split_at_mut(d);
        let (sums, rest) = rest.split_at_mut(d);
        let scores = &mut rest[..keys];
        for (i, lse) in lse.iter_mut().enumerate() {
            q.iter_mut().zip(&self.q[i * d..][..d]).for_each(|(to, from)| *to = from.load() * self.h.scale);
            score(q, self.cached(self.head), self.width(), scores);
            if let Some(cap) = self.h.cap {
                soft_cap(scores, cap);
            }
            let max = scores.iter().fold(f32::NEG_INFINITY, |max, &s| if s > max { s } else { max });
            let sum = weigh(scores, max, self.cached(self.h.kv + self.head), self.width(), sums);
            o[i * d..][..d].iter_mut().zip(&*sums).for_each(|(o, of_values)| *o = A::store(of_values / sum));
            *lse = max + sum.ln();
        }
    }

    /// The columns of a rank's cache: the heads of k, then those of v.
    fn width(&self) -> usize {
        2 * self.h.kv * self.h.dim
    }

    /// The cache from the first row that is seen on, from the first column of this head on.
    fn cached(&self, head: usize) -> &[A] {
        &self.cache[self.seen.start * self.width() + head * self.h.dim..]
    }
}

vectorized! {
    /// The scores of a query for keys that are `width` elements apart.
    fn score<A: Float>(q: &[f32], keys: &[A], width: usize, scores: &mut [f32]) {
        for (i, score) in scores.iter_mut().enumerate() {
            let k = &keys[i * width..][..q.len()];
            *score = dot(q, k);
        }
    }
}

#[inline(always)]
fn dot<A: Float>(q: &[f32], k: &[A]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (mut q16, mut k16) = (q.chunks_exact(16), k.chunks_exact(16));
    for (q, k) in (&mut q16).zip(&mut k16) {
        for i in 0..16 {
            sums[i] = q[i].mul_add(k[i].load(), sums[i]);
        }
    }
    let rest: f32 = q16.remainder().iter().zip(k16.remainder()).map(|(q, k)| q * k.load()).sum();
    sums.iter().sum::<f32>() + rest
}

vectorized! {
    /// `sums` = the values weighted by P = e^(score - max), rounded as the activations are; returns the sum of P before
    /// it is rounded.
    fn weigh<A: Float>(scores: &[f32], max: f32, values: &[A], width: usize, sums: &mut [f32]) -> f32 {
        sums.fill(0.0);
        let mut all = 0.0;
        for (i, score) in scores.iter().enumerate() {
            let p = (score - max).exp();
            all += p;
            let p = rounded::<A>(p);
            for (sum, v) in sums.iter_mut().zip(&values[i * width..]) {
                *sum = p.mul_add(v.load(), *sum);
            }
        }
        all
    }
}
