//! LayerNorm (Ba et al. 2016): y = n * w + b with n = (x - mean) * rstd, rstd = 1 / sqrt(var(x) + eps), and
//! dx = rstd * (g - mean(g) - n * mean(g * n)) with g = dy * w; dw = sum over the rows of dy * n, db = that of dy.
//! Statistics and sums are f32.

use super::task_rows;
use crate::cpu::float::Float;
use crate::cpu::pool::Pool;
use crate::cpu::simd::{LANES, sum_lanes, vectorized};
use crate::cpu::workers::Workers;
use std::rc::Rc;

/// Rows of a task of backward. A task sums its rows' part of dw and db; the parts are then added in order.
const BLOCK: usize = 32;

/// y, and (mean, rstd) of each row, from x `[T, D]`, w and bias `[D]`.
pub fn layernorm<A: Float>(workers: &Workers, x: &[A], w: &[A], bias: &[A], eps: f32, y: &mut [A], stats: &mut [f32]) {
    let rows = task_rows(w.len());
    let tasks = x.chunks(rows * w.len()).zip(y.chunks_mut(rows * w.len())).zip(stats.chunks_mut(rows * 2));
    workers.each(tasks, |((x, y), stats)| forward(x, w, bias, eps, y, stats));
}

vectorized! {
    fn forward<A: Float>(x: &[A], w: &[A], bias: &[A], eps: f32, y: &mut [A], stats: &mut [f32]) {
        let d = w.len();
        for ((x, y), stats) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(stats.as_chunks_mut::<2>().0) {
            let mean = sum_of(d, |i| x[i].load()) / d as f32;
            let var = sum_of(d, |i| (x[i].load() - mean) * (x[i].load() - mean)) / d as f32;
            let rstd = 1.0 / (var + eps).sqrt();
            *stats = [mean, rstd];
            for (((y, x), w), bias) in y.iter_mut().zip(x).zip(w).zip(bias) {
                *y = A::store(((x.load() - mean) * rstd).mul_add(w.load(), bias.load()));
            }
        }
    }
}

/// The sum of `f(i)` for i < n, in lanes.
#[inline(always)]
fn sum_of(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let whole = n / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum += f(at + i);
        }
    }
    (whole..n).fold(sum_lanes(sums), |sum, i| sum + f(i))
}

/// The inputs and outputs of [`layernorm`] that its backward reads.
pub struct Saved<'a, A> {
    /// `[T, D]`.
    pub x: &'a [A],
    /// `[T, 2]`.
    pub stats: &'a [f32],
    /// `[D]`.
    pub w: &'a [A],
}

/// Scratch of [`layernorm_bwd`] in f32 elements: the parts of dw and db.
pub fn scratch(rows: usize, d: usize) -> usize {
    rows.div_ceil(BLOCK) * 2 * d
}

/// Replaces dy by dx, plus `dres` if it is given; adds to dw and db, `[D]` each.
pub fn layernorm_bwd<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    dres: Option<&[A]>,
    dy: &mut [A],
    saved: Saved<'_, A>,
    [dw, dbias]: [&mut [f32]; 2],
) {
    let d = saved.w.len();
    let mut parts = pool.take::<f32>(scratch(saved.stats.len() / 2, d));
    let inputs = saved.x.chunks(BLOCK * d).zip(saved.stats.chunks(BLOCK * 2));
    let tasks = dy.chunks_mut(BLOCK * d).zip(inputs).zip(parts.as_mut_slice().chunks_mut(2 * d)).enumerate();
    let tasks = tasks.map(|(n, ((dy, (x, stats)), part))| {
        let dres = dres.map_or(&[][..], |dres| &dres[n * BLOCK * d..][..dy.len()]);
        (dres, dy, Saved { x, stats, w: saved.w }, part)
    });
    workers.each(tasks, |(dres, dy, saved, part)| backward(dres, dy, saved, part));
    for part in parts.as_slice().chunks_exact(2 * d) {
        dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
        dbias.iter_mut().zip(&part[d..]).for_each(|(dbias, part)| *dbias += part);
    }
}

vectorized! {
    fn backward<A: Float>(dres: &[A], dy: &mut [A], saved: Saved<'_, A>, part: &mut [f32]) {
        let (d, w) = (saved.w.len(), saved.w);
        part.fill(0.0);
        let (dw, dbias) = part.split_at_mut(d);
        let rows = dy.chunks_exact_mut(d).zip(saved.x.chunks_exact(d)).zip(saved.stats.as_chunks::<2>().0);
        for (row, ((dy, x), &[mean, rstd])) in rows.enumerate() {
            let g = sum_of(d, |i| dy[i].load() * w[i].load()) / d as f32;
            let gn = sum_of(d, |i| dy[i].load() * w[i].load() * (x[i].load() - mean)) * rstd / d as f32;
            for i in 0..d {
                let (one, n) = (dy[i].load(), (x[i].load() - mean) * rstd);
                dw[i] = one.mul_add(n, dw[i]);
                dbias[i] += one;
                let before = if dres.is_empty() { 0.0 } else { dres[row * d + i].load() };
                dy[i] = A::store(rstd.mul_add(one * w[i].load() - g - n * gn, before));
            }
        }
    }
}
