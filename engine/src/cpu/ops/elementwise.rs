//! Sums, copies and conversions, element by element.

use crate::cpu::float::Float;
use crate::cpu::simd::vectorized;
use crate::cpu::workers::Workers;
use std::ops::Range;

/// Elements of a task.
const TASK: usize = 64 * 1024;

/// x += y, rounded.
pub fn add<A: Float>(workers: &Workers, x: &mut [A], y: &[A]) {
    workers.each(x.chunks_mut(TASK).zip(y.chunks(TASK)), |(x, y)| add_task(x, y));
}

vectorized! {
    fn add_task<A: Float>(x: &mut [A], y: &[A]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x = A::store(x.load() + y.load());
        }
    }
}

/// x *= factor, rounded.
pub fn scale<A: Float>(workers: &Workers, x: &mut [A], factor: f32) {
    workers.each(x.chunks_mut(TASK), |x| x.iter_mut().for_each(|x| *x = A::store(x.load() * factor)));
}

/// y = x rounded.
pub fn round<A: Float>(workers: &Workers, x: &[f32], y: &mut [A]) {
    workers.each(x.chunks(TASK).zip(y.chunks_mut(TASK)), |(x, y)| store(x, y));
}

pub fn widen<A: Float>(workers: &Workers, x: &[A], y: &mut [f32]) {
    workers.each(x.chunks(TASK).zip(y.chunks_mut(TASK)), |(x, y)| {
        x.iter().zip(y).for_each(|(x, y)| *y = x.load());
    });
}

pub fn copy<T: Copy + Send + Sync>(workers: &Workers, x: &[T], y: &mut [T]) {
    workers.each(x.chunks(TASK).zip(y.chunks_mut(TASK)), |(x, y)| y.copy_from_slice(x));
}

/// Gathers the elements `ranges` of x into `part`.
pub fn pick(x: &[f32], ranges: &[Range<usize>], part: &mut [f32]) {
    let mut rest = part;
    for range in ranges {
        let (to, after) = rest.split_at_mut(range.len());
        to.copy_from_slice(&x[range.clone()]);
        rest = after;
    }
}

/// Scatters `part` into the elements `ranges` of x.
pub fn put(part: &[f32], ranges: &[Range<usize>], x: &mut [f32]) {
    let mut rest = part;
    for range in ranges {
        let (from, after) = rest.split_at(range.len());
        x[range.clone()].copy_from_slice(from);
        rest = after;
    }
}

pub fn zero(workers: &Workers, x: &mut [f32]) {
    workers.each(x.chunks_mut(TASK), |x| x.fill(0.0));
}

vectorized! {
    /// y = x rounded, on this thread.
    pub fn store<A: Float>(x: &[f32], y: &mut [A]) {
        for (x, y) in x.iter().zip(y) {
            *y = A::store(*x);
        }
    }
}

vectorized! {
    /// y = x, on this thread.
    pub fn load<A: Float>(x: &[A], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = x.load();
        }
    }
}
