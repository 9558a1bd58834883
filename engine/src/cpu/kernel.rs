//! The micro-kernel of a matrix product (Goto & van de Geijn 2008): operands are packed into panels, and a block of the
//! output stays in registers over the whole depth. Every element is one chain of fused multiply-adds in the order of
//! the depth, whatever the instruction set and however the work is divided.

use super::tiles::Tile;
use pulp::{Arch, Simd, WithSimd};

/// Rows and columns of the register block. A panel of the right operand is `[depth, cols]`, so that the
/// kernel reads it in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub rows: usize,
    pub cols: usize,
}

impl Shape {
    /// The shape for this machine: as many accumulators as its registers hold.
    pub fn here() -> Shape {
        struct Ask;
        impl WithSimd for Ask {
            type Output = Shape;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Shape {
                let (rows, vectors) = if S::F32_LANES == 16 { (12, 2) } else { (6, 2) };
                Shape { rows, cols: vectors * S::F32_LANES }
            }
        }
        Arch::new().dispatch(Ask)
    }
}

/// The layout of a panel of the left operand: that of the operand in memory, so that packing never transposes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// `[Shape::rows, depth]`.
    Rows,
    /// `[depth, Shape::rows]`.
    Cols,
}

/// out = a b, or out += a b, of packed operands.
pub struct Product<'a, 'b, 'c> {
    /// Panels of all rows, one after another.
    pub a: &'a [f32],
    pub left: Left,
    /// Panels of all columns, each `b_step` elements after the one before; `[depth, Shape::cols]` of each is used.
    pub b: &'a [f32],
    pub b_step: usize,
    pub depth: usize,
    /// Whether the product is added to `out`.
    pub add: bool,
    pub out: &'b mut Tile<'c, f32>,
}

impl Product<'_, '_, '_> {
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Product<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::F32_LANES == 16 { self.panels::<S, 12, 2>(simd) } else { self.panels::<S, 6, 2>(simd) }
    }
}

impl Product<'_, '_, '_> {
    #[inline(always)]
    fn panels<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let width = VECTORS * S::F32_LANES;
        let (rows, cols) = (self.out.rows(), self.out.cols());
        for (n, left) in (0..cols).step_by(width).enumerate() {
            let b = &self.b[n * self.b_step..][..self.depth * width];
            for (a, top) in self.a.chunks_exact(self.depth * ROWS).zip((0..rows).step_by(ROWS)) {
                // The output is not in the cache: its lines arrive while the sums are computed.
                (top..rows.min(top + ROWS)).for_each(|row| self.out.prefetch(row, left, width));
                let sums = match self.left {
                    Left::Rows => rows_by_cols::<S, ROWS, VECTORS>(simd, a, b),
                    Left::Cols => cols_by_cols::<S, ROWS, VECTORS>(simd, a, b),
                };
                for (row, sums) in (top..rows).zip(&sums) {
                    let out = &mut self.out.row(row)[left..];
                    if out.len() >= width {
                        put(simd, self.add, sums, S::as_mut_simd_f32s(&mut out[..width]).0);
                    } else {
                        put_some(self.add, bytemuck::cast_slice(sums), out);
                    }
                }
            }
        }
    }
}

/// The product of a panel `[ROWS, depth]` and a panel of the right operand.
#[inline(always)]
fn rows_by_cols<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: &[f32],
    b: &[f32],
) -> [[S::f32s; VECTORS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let b = S::as_simd_f32s(b).0.as_chunks::<VECTORS>().0;
    let depth = b.len();
    let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &a[i * depth..][..depth]);
    for p in 0..depth {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            add_scaled(simd, row[p], &b[p], sums);
        }
    }
    sums
}

/// The product of a panel `[depth, ROWS]` and a panel of the right operand.
#[inline(always)]
fn cols_by_cols<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: &[f32],
    b: &[f32],
) -> [[S::f32s; VECTORS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let b = S::as_simd_f32s(b).0.as_chunks::<VECTORS>().0;
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b) {
        for (sums, a) in sums.iter_mut().zip(a) {
            add_scaled(simd, *a, b, sums);
        }
    }
    sums
}

#[inline(always)]
fn add_scaled<S: Simd, const VECTORS: usize>(simd: S, a: f32, b: &[S::f32s; VECTORS], sums: &mut [S::f32s; VECTORS]) {
    let a = simd.splat_f32s(a);
    for (sum, b) in sums.iter_mut().zip(b) {
        *sum = simd.mul_add_f32s(a, *b, *sum);
    }
}

#[inline(always)]
fn put<S: Simd>(simd: S, add: bool, sums: &[S::f32s], out: &mut [S::f32s]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if add { simd.add_f32s(*out, *sum) } else { *sum };
    }
}

#[inline(always)]
fn put_some(add: bool, sums: &[f32], out: &mut [f32]) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if add { *out + sum } else { *sum };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 7 x 40 = 7 x 9 times 9 x 40 by panels of `shape`, added twice.
    fn product(shape: Shape, left: Left, run: impl Fn(Product)) -> Vec<f32> {
        let (m, n, k) = (7, 40, 9);
        let a = |i: usize, p: usize| if i < m { ((i * 31 + p * 17) % 23) as f32 / 7.0 - 1.5 } else { 0.0 };
        let b = |p: usize, j: usize| if j < n { ((p * 13 + j * 29) % 19) as f32 / 3.0 - 3.0 } else { 0.0 };
        let panel = |at: usize, width: usize| (at / (k * width) * width, at % (k * width));
        let lefts = (0..m.next_multiple_of(shape.rows) * k).map(|at| {
            let (first, at) = panel(at, shape.rows);
            if left == Left::Rows { a(first + at / k, at % k) } else { a(first + at % shape.rows, at / shape.rows) }
        });
        let rights = (0..n.next_multiple_of(shape.cols) * k).map(|at| {
            let (first, at) = panel(at, shape.cols);
            b(at / shape.cols, first + at % shape.cols)
        });
        let (lefts, rights): (Vec<f32>, Vec<f32>) = (lefts.collect(), rights.collect());
        let mut out = vec![f32::NAN; m * n];
        for add in [false, true] {
            let out = &mut Tile::whole(&mut out, m, n);
            run(Product { a: &lefts, left, b: &rights, b_step: k * shape.cols, depth: k, add, out });
        }
        out
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for left in [Left::Rows, Left::Cols] {
            let plain = product(Shape { rows: 6, cols: 2 }, left, |p| pulp::Scalar.vectorize(p));
            assert!(product(Shape::here(), left, |p| p.run()) == plain);
            #[cfg(target_arch = "x86_64")]
            if let Some(avx2) = pulp::x86::V3::try_new() {
                assert!(product(Shape { rows: 6, cols: 16 }, left, |p| Simd::vectorize(avx2, p)) == plain);
            }
            assert!(plain.iter().all(|x| x.is_finite()));
        }
    }
}
