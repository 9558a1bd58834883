//! RMSNorm (Zhang & Sennrich 2019): y = x * rstd * w, w = offset + weight, with rstd = 1 / sqrt(mean(x^2) + eps), and
//! dx = rstd * (dy * w - x * rstd^2 * mean(dy * w * x)), dw = sum over the rows of dy * x * rstd.
//! Statistics and sums are f32; x * rstd is not rounded before it is scaled.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{LANES, sum_lanes, vectorized};
use crate::cpu::tiles::{cut, widths};
use crate::cpu::workers::Workers;
use std::rc::Rc;

/// The weight `[D]`, to which `offset` is added, and eps.
pub struct Params<'a, A> {
    pub weight: &'a [A],
    pub offset: f32,
    pub eps: f32,
}

impl<A> Copy for Params<'_, A> {}
impl<A> Clone for Params<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: Float> Params<'_, A> {
    fn len(&self) -> usize {
        self.weight.len()
    }
}

/// Rows of a task of backward. A task sums its rows' part of dw; the parts are then added in order.
const BLOCK: usize = 32;

/// y and rstd from x `[T, D]`, w `[D]`.
pub fn rmsnorm<A: Float>(workers: &Workers, x: &[A], w: Params<'_, A>, y: &mut [A], rstd: &mut [f32]) {
    let rows = task_rows(w.len());
    let tasks = x.chunks(rows * w.len()).zip(y.chunks_mut(rows * w.len())).zip(rstd.chunks_mut(rows));
    workers.each(tasks, |((x, y), rstd)| forward(x, w, y, rstd));
}

/// h += x, rounded, then [`rmsnorm`] of h.
pub fn add_rmsnorm<A: Float>(workers: &Workers, x: &[A], h: &mut [A], w: Params<'_, A>, y: &mut [A], rstd: &mut [f32]) {
    let len = task_rows(w.len()) * w.len();
    let tasks = x.chunks(len).zip(h.chunks_mut(len)).zip(y.chunks_mut(len)).zip(rstd.chunks_mut(len / w.len()));
    workers.each(tasks, |(((x, h), y), rstd)| {
        add(x, h);
        forward(h, w, y, rstd);
    });
}

/// y from x and rstd.
pub fn rmsnorm_recompute<A: Float>(workers: &Workers, x: &[A], rstd: &[f32], w: Params<'_, A>, y: &mut [A]) {
    let len = task_rows(w.len()) * w.len();
    let tasks = x.chunks(len).zip(y.chunks_mut(len)).zip(rstd.chunks(len / w.len()));
    workers.each(tasks, |((x, y), rstd)| again(x, rstd, w, y));
}

vectorized! {
    fn add<A: Float>(x: &[A], h: &mut [A]) {
        for (x, h) in x.iter().zip(h) {
            *h = A::store(x.load() + h.load());
        }
    }
}

vectorized! {
    fn forward<A: Float>(x: &[A], w: Params<'_, A>, y: &mut [A], rstd: &mut [f32]) {
        let d = w.len();
        for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
            *rstd = 1.0 / (dot(x, x) / d as f32 + w.eps).sqrt();
            scale_row(x, *rstd, w, y);
        }
    }
}

vectorized! {
    fn again<A: Float>(x: &[A], rstd: &[f32], w: Params<'_, A>, y: &mut [A]) {
        let d = w.len();
        for ((x, y), rstd) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
            scale_row(x, *rstd, w, y);
        }
    }
}

#[inline(always)]
fn scale_row<A: Float>(x: &[A], rstd: f32, w: Params<'_, A>, y: &mut [A]) {
    for ((y, x), weight) in y.iter_mut().zip(x).zip(w.weight) {
        *y = A::store(x.load() * rstd * (w.offset + weight.load()));
    }
}

#[inline(always)]
fn dot<A: Float>(x: &[A], y: &[A]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            sums[i] = x[i].load().mul_add(y[i].load(), sums[i]);
        }
    }
    let mut rest = 0.0f32;
    for (x, y) in x_rest.iter().zip(y_rest) {
        rest = x.load().mul_add(y.load(), rest);
    }
    sum_lanes(sums) + rest
}

/// The inputs and outputs of [`rmsnorm`] that its backward reads.
pub struct Saved<'a, A> {
    /// `[T, D]`.
    pub x: &'a [A],
    /// `[T]`.
    pub rstd: &'a [f32],
    pub w: Params<'a, A>,
}

/// Scratch of [`rmsnorm_bwd`] in f32 elements: the parts of dw.
pub fn scratch(rows: usize, d: usize) -> usize {
    rows.div_ceil(BLOCK) * d
}

/// Replaces dy by dx, plus `dres` if it is given; adds to dw `[D]`.
pub fn rmsnorm_bwd<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    dres: Option<&[A]>,
    dy: &mut [A],
    saved: Saved<'_, A>,
    dw: &mut [f32],
) {
    let d = saved.w.len();
    let mut parts = pool.take::<f32>(scratch(saved.rstd.len(), d));
    let inputs = saved.x.chunks(BLOCK * d).zip(saved.rstd.chunks(BLOCK)).zip(parts.as_mut_slice().chunks_mut(d));
    let tasks = dy.chunks_mut(BLOCK * d).zip(inputs).enumerate().map(|(n, (dy, ((x, rstd), part)))| {
        let dres = dres.map_or(&[][..], |dres| &dres[n * BLOCK * d..][..dy.len()]);
        (dres, dy, Saved { x, rstd, w: saved.w }, part)
    });
    workers.each(tasks, |(dres, dy, saved, part)| backward(dres, dy, saved, part));
    let parts = parts.as_slice();
    let across = widths(d, 64);
    workers.each(cut(dw, d, 1, &across).into_iter().enumerate(), |(n, mut dw)| {
        let dw = dw.row(0);
        for part in parts.chunks_exact(d) {
            dw.iter_mut().zip(&part[n * 64..]).for_each(|(dw, part)| *dw += part);
        }
    });
}

vectorized! {
    fn backward<A: Float>(dres: &[A], dy: &mut [A], saved: Saved<'_, A>, part: &mut [f32]) {
        let (d, offset) = (saved.w.len(), saved.w.offset);
        part.fill(0.0);
        let rows = dy.chunks_exact_mut(d).zip(saved.x.chunks_exact(d)).zip(saved.rstd);
        for (row, ((dy, x), &rstd)) in rows.enumerate() {
            let mean = weighted_dot(dy, saved.w, x) / d as f32;
            let c = rstd * rstd * mean;
            for ((part, dy), x) in part.iter_mut().zip(&*dy).zip(x) {
                *part = (dy.load() * rstd).mul_add(x.load(), *part);
            }
            if dres.is_empty() {
                for ((dy, x), w) in dy.iter_mut().zip(x).zip(saved.w.weight) {
                    *dy = A::store(rstd * (-c).mul_add(x.load(), dy.load() * (offset + w.load())));
                }
            } else {
                for (((dy, x), w), dres) in dy.iter_mut().zip(x).zip(saved.w.weight).zip(&dres[row * d..]) {
                    *dy = A::store(rstd.mul_add((-c).mul_add(x.load(), dy.load() * (offset + w.load())), dres.load()));
                }
            }
        }
    }
}

/// The sum of dy w x.
#[inline(always)]
fn weighted_dot<A: Float>(dy: &[A], w: Params<'_, A>, x: &[A]) -> f32 {
    let (w, offset) = (w.weight, w.offset);
    let mut sums = [0.0f32; LANES];
    let whole = dy.len() / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let (dy, w, x) = (&dy[at..at + LANES], &w[at..at + LANES], &x[at..at + LANES]);
        for i in 0..LANES {
            sums[i] = (dy[i].load() * (offset + w[i].load())).mul_add(x[i].load(), sums[i]);
        }
    }
    let mut rest = 0.0f32;
    for ((dy, w), x) in dy[whole..].iter().zip(&w[whole..]).zip(&x[whole..]) {
        rest = (dy.load() * (offset + w.load())).mul_add(x.load(), rest);
    }
    sum_lanes(sums) + rest
}
