//! Rotary positions (Su et al. 2021), halves layout: the pair (x_j, x_{j + d/2}) of a head at position p
//! is rotated by the angle of `table[p, j]`: y_j = x_j cos - x_{j+d/2} sin, y_{j+d/2} = x_{j+d/2} cos + x_j sin.
//! The gradient is rotated back.

use super::task_rows;
use crate::backend::Heads;
use crate::cpu::float::Float;
use crate::cpu::simd::vectorized;
use crate::cpu::workers::Workers;

/// Rotates q and k of qkv `[T, (H + 2G) d]` by the rows `positions` `[T, 1]` of the table of cosines and sines.
pub fn rope<A: Float>(workers: &Workers, qkv: &mut [A], table: &[f32], positions: &[u32], h: Heads) {
    rotate_all(workers, qkv, table, positions, h, 1.0);
}

/// The gradient: rotates by the negative angles.
pub fn rope_bwd<A: Float>(workers: &Workers, dqkv: &mut [A], table: &[f32], positions: &[u32], h: Heads) {
    rotate_all(workers, dqkv, table, positions, h, -1.0);
}

fn rotate_all<A: Float>(workers: &Workers, qkv: &mut [A], table: &[f32], positions: &[u32], h: Heads, sign: f32) {
    let rows = task_rows(h.qkv_cols());
    workers.each(qkv.chunks_mut(rows * h.qkv_cols()).zip(positions.chunks(rows)), |(qkv, positions)| {
        rotate(qkv, positions, table, h, sign);
    });
}

vectorized! {
    /// Some rows of the matrix, with their positions.
    fn rotate<A: Float>(qkv: &mut [A], positions: &[u32], table: &[f32], h: Heads, sign: f32) {
        let half = h.dim / 2;
        for (qkv, position) in qkv.chunks_exact_mut(h.qkv_cols()).zip(positions) {
            let angles = &table[*position as usize * h.dim..][..h.dim];
            let (cos, sin) = angles.split_at(half);
            for head in qkv[..(h.query + h.kv) * h.dim].chunks_exact_mut(h.dim) {
                let (low, high) = head.split_at_mut(half);
                for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    let (x1, x2, sin) = (low.load(), high.load(), sign * sin);
                    *low = A::store(x1 * cos - x2 * sin);
                    *high = A::store(x2 * cos + x1 * sin);
                }
            }
        }
    }
}
