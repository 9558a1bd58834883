//! RMSNorm of each head of q and k, then the rotation: y = R (x rstd w) with rstd = 1 / sqrt(mean(x^2) + eps) over the
//! head. With g = R^T dy: dx = rstd (g w - x rstd^2 mean(g w x)), dw = sum over rows and heads of g x rstd. v is
//! copied.

use super::task_rows;
use crate::backend::Heads;
use crate::cpu::float::Float;
use crate::cpu::pool::Pool;
use crate::cpu::simd::vectorized;
use crate::cpu::workers::Workers;
use std::rc::Rc;

/// Rows of a task of backward. A task sums its rows' part of the gradients of the weights; the parts are then added in
/// order.
const BLOCK: usize = 32;

/// The weights of q and of k, `[d]` each, and the rotary table with the positions of the rows.
pub struct Params<'a, A> {
    pub q: &'a [A],
    pub k: &'a [A],
    pub eps: f32,
    pub table: &'a [f32],
    pub positions: &'a [u32],
    pub h: Heads,
}

impl<A> Copy for Params<'_, A> {}
impl<A> Clone for Params<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<'a, A> Params<'a, A> {
    /// Those of `rows` rows from `first` on.
    fn rows(self, first: usize, rows: usize) -> Self {
        Params { positions: &self.positions[first..(first + rows).min(self.positions.len())], ..self }
    }

    /// The weight of head `n` of q and k, in halves.
    #[inline(always)]
    fn weight(&self, n: usize) -> (&'a [A], &'a [A]) {
        (if n < self.h.query { self.q } else { self.k }).split_at(self.h.dim / 2)
    }

    /// cos and sin of a position.
    #[inline(always)]
    fn angles(&self, position: u32) -> (&'a [f32], &'a [f32]) {
        self.table[position as usize * self.h.dim..][..self.h.dim].split_at(self.h.dim / 2)
    }

    /// Elements of q and k in a row.
    fn rotated(&self) -> usize {
        (self.h.query + self.h.kv) * self.h.dim
    }
}

/// y from qkv, `[T, (H + 2G) d]` each.
pub fn forward<A: Float>(workers: &Workers, qkv: &[A], p: Params<'_, A>, y: &mut [A]) {
    let (cols, rows) = (p.h.qkv_cols(), task_rows(p.h.qkv_cols()));
    let tasks = qkv.chunks(rows * cols).zip(y.chunks_mut(rows * cols)).enumerate();
    workers.each(tasks, |(n, (qkv, y))| some_rows(qkv, p.rows(n * rows, rows), y));
}

vectorized! {
    fn some_rows<A: Float>(qkv: &[A], p: Params<'_, A>, y: &mut [A]) {
        let (cols, d, rotated) = (p.h.qkv_cols(), p.h.dim, p.rotated());
        let rows = qkv.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(p.positions);
        for ((qkv, y), &position) in rows {
            let (cos, sin) = p.angles(position);
            y[rotated..].copy_from_slice(&qkv[rotated..]);
            let heads = qkv[..rotated].chunks_exact(d).zip(y[..rotated].chunks_exact_mut(d));
            for (n, (x, y)) in heads.enumerate() {
                let rstd = rstd(x, p.eps);
                let ((x1, x2), (w1, w2), (y1, y2)) = (x.split_at(d / 2), p.weight(n), y.split_at_mut(d / 2));
                for (j, (y1, y2)) in y1.iter_mut().zip(y2).enumerate() {
                    let (a, b) = (x1[j].load() * rstd * w1[j].load(), x2[j].load() * rstd * w2[j].load());
                    *y1 = A::store(a * cos[j] - b * sin[j]);
                    *y2 = A::store(b * cos[j] + a * sin[j]);
                }
            }
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps).
#[inline(always)]
fn rstd<A: Float>(x: &[A], eps: f32) -> f32 {
    let square = sum(x.len(), |j| x[j].load() * x[j].load());
    1.0 / (square / x.len() as f32 + eps).sqrt()
}

/// The sum of `f(j)` for j < n, in 16 lanes: a head is short.
#[inline(always)]
fn sum(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let whole = n / 16 * 16;
    for at in (0..whole).step_by(16) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(at + i);
        }
    }
    (whole..n).fold(lanes.iter().sum(), |sum, j| sum + f(j))
}

/// Scratch of [`backward`] in f32 elements: the parts of the gradients of both weights, and a head's g of each thread.
pub fn scratch(rows: usize, d: usize) -> usize {
    rows.div_ceil(BLOCK) * 3 * d
}

/// Replaces the gradient of y by that of qkv; adds to those of the weights of q and k, `[d]` each.
pub fn backward<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    dqkv: &mut [A],
    qkv: &[A],
    p: Params<'_, A>,
    [dq, dk]: [&mut [f32]; 2],
) {
    let (cols, d) = (p.h.qkv_cols(), p.h.dim);
    let mut parts = pool.take::<f32>(scratch(p.positions.len(), d));
    let tasks = dqkv.chunks_mut(BLOCK * cols).zip(qkv.chunks(BLOCK * cols)).zip(parts.as_mut_slice().chunks_mut(3 * d));
    workers.each(tasks.enumerate(), |(n, ((dqkv, qkv), part))| {
        some_rows_bwd(dqkv, qkv, p.rows(n * BLOCK, BLOCK), part);
    });
    for part in parts.as_slice().chunks_exact(3 * d) {
        dq.iter_mut().zip(part).for_each(|(dq, part)| *dq += part);
        dk.iter_mut().zip(&part[d..]).for_each(|(dk, part)| *dk += part);
    }
}

vectorized! {
    /// `part` has the gradients of the two weights, and a head's g.
    fn some_rows_bwd<A: Float>(dqkv: &mut [A], qkv: &[A], p: Params<'_, A>, part: &mut [f32]) {
        let (cols, d, rotated) = (p.h.qkv_cols(), p.h.dim, p.rotated());
        part.fill(0.0);
        let (dw, g) = part.split_at_mut(2 * d);
        let rows = dqkv.chunks_exact_mut(cols).zip(qkv.chunks_exact(cols)).zip(p.positions);
        for ((dqkv, qkv), &position) in rows {
            let (cos, sin) = p.angles(position);
            let heads = dqkv[..rotated].chunks_exact_mut(d).zip(qkv[..rotated].chunks_exact(d));
            for (n, (dy, x)) in heads.enumerate() {
                // g = R^T dy
                let ((dy1, dy2), (g1, g2)) = (dy.split_at(d / 2), g.split_at_mut(d / 2));
                for (j, (g1, g2)) in g1.iter_mut().zip(g2).enumerate() {
                    let (a, b) = (dy1[j].load(), dy2[j].load());
                    *g1 = a * cos[j] + b * sin[j];
                    *g2 = b * cos[j] - a * sin[j];
                }
                let (w, dw) = if n < p.h.query { (p.q, &mut dw[..d]) } else { (p.k, &mut dw[d..]) };
                let rstd = rstd(x, p.eps);
                let mean = sum(d, |j| g[j] * w[j].load() * x[j].load()) / d as f32;
                let c = rstd * rstd * mean;
                for (j, (dy, dw)) in dy.iter_mut().zip(dw).enumerate() {
                    let x = x[j].load();
                    *dw = (g[j] * rstd).mul_add(x, *dw);
                    *dy = A::store(rstd * (-c).mul_add(x, g[j] * w[j].load()));
                }
            }
        }
    }
}
