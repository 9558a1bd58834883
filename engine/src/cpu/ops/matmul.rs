//! Matrix products. The right operand is packed once, a strip at a time, for all threads; then the output is cut into
//! tiles. One thread computes a tile, and packs the tile's rows of the left operand. Strips, tiles and the blocks of
//! the depth follow from the shapes alone, so the order of every sum is fixed.

use super::elementwise::{load, store};
use crate::cpu::float::Float;
use crate::cpu::kernel::{Left, Product, Shape};
use crate::cpu::pool::Pool;
use crate::cpu::simd::{transpose16, vectorized};
use crate::cpu::tiles::{Tile, cut, widths};
use crate::cpu::workers::Workers;
use std::ops::Range;
use std::rc::Rc;

/// The largest depth of the panels that the kernel gets.
const DEPTH: usize = 512;
/// Rows of a tile, whole panels on every machine: the left panels of 192 x 512 stay in the L2 cache.
pub(super) const ROWS: usize = 192;
/// The largest number of columns of a tile.
const COLS: usize = 512;
/// The largest number of elements of a packed strip, and its largest depth: 8 MiB, near a core's share of the L3 cache.
const STRIP: usize = 2 << 20;
pub(super) const STRIP_DEPTH: usize = 4096;

/// An operand of a product, `rows x cols`: the matrix in memory, or its transpose.
#[derive(Clone, Copy)]
pub struct Operand<'a, A> {
    data: &'a [A],
    stride: usize,
    transposed: bool,
    rows: usize,
    cols: usize,
}

impl<'a, A: Float> Operand<'a, A> {
    pub fn new(data: &'a [A], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "elements of a {rows} x {cols} matrix");
        Operand { data, stride: cols, transposed: false, rows, cols }
    }

    pub fn t(self) -> Self {
        Operand { transposed: !self.transposed, rows: self.cols, cols: self.rows, ..self }
    }

    /// Packs rows and columns of the left operand into panels of `height` rows.
    fn pack_left(&self, rows: Range<usize>, cols: Range<usize>, height: usize, to: &mut [f32]) -> Left {
        if self.transposed {
            self.pack(rows, cols, height, to);
            return Left::Cols;
        }
        let (whole, rest) = to.split_at_mut(rows.len() * cols.len());
        for (row, to) in rows.zip(whole.chunks_exact_mut(cols.len())) {
            load(&self.data[row * self.stride..][cols.clone()], to);
        }
        rest.fill(0.0);
        Left::Rows
    }

    /// Packs rows and columns into panels `[cols, width]`, the last one filled up with zeros.
    fn pack(&self, rows: Range<usize>, cols: Range<usize>, width: usize, to: &mut [f32]) {
        for (first, panel) in rows.clone().step_by(width).zip(to.chunks_exact_mut(cols.len() * width)) {
            let n = width.min(rows.end - first);
            if self.transposed {
                pack_rows(&self.data[cols.start * self.stride + first..], self.stride, n, width, panel);
            } else {
                pack_cols(&self.data[first * self.stride + cols.start..], self.stride, n, width, panel);
            }
        }
    }
}

vectorized! {
    /// `panel[p, i] = from[p, i]` for i < n.
    fn pack_rows<A: Float>(from: &[A], stride: usize, n: usize, width: usize, panel: &mut [f32]) {
        match width {
            _ if n < width => pack_some(from, [stride, 1], n, width, panel),
            12 => pack_whole_rows::<A, 12>(from, stride, panel),
            32 => pack_whole_rows::<A, 32>(from, stride, panel),
            _ => pack_some(from, [stride, 1], n, width, panel),
        }
    }
}

vectorized! {
    /// `panel[p, i] = from[i, p]` for i < n.
    fn pack_cols<A: Float>(from: &[A], stride: usize, n: usize, width: usize, panel: &mut [f32]) {
        match width {
            _ if n < width => pack_some(from, [1, stride], n, width, panel),
            32 => pack_by_sixteen(from, stride, panel),
            _ => pack_some(from, [1, stride], n, width, panel),
        }
    }
}

/// `panel[p, i] = from[i, p]` for i < 32, in blocks of 16 x 16.
#[inline(always)]
fn pack_by_sixteen<A: Float>(from: &[A], stride: usize, panel: &mut [f32]) {
    let (blocks, rest) = panel.as_chunks_mut::<{ 16 * 32 }>();
    for (n, block) in blocks.iter_mut().enumerate() {
        for half in [0, 16] {
            let mut square = [[0.0; 16]; 16];
            for (i, to) in square.iter_mut().enumerate() {
                let from = from[(half + i) * stride + n * 16..].first_chunk::<16>().expect("a row of the square");
                for j in 0..16 {
                    to[j] = from[j].load();
                }
            }
            transpose16(&mut square);
            for (to, col) in block.as_chunks_mut::<32>().0.iter_mut().zip(&square) {
                to[half..half + 16].copy_from_slice(col);
            }
        }
    }
    pack_some(&from[blocks.len() * 16..], [1, stride], 32, 32, rest);
}

/// Packs a panel of any width, with zeros from column n on; `steps` are the distances between its rows and columns in
/// `from`.
#[inline(always)]
fn pack_some<A: Float>(from: &[A], steps: [usize; 2], n: usize, width: usize, panel: &mut [f32]) {
    for (p, panel) in panel.chunks_exact_mut(width).enumerate() {
        for (i, to) in panel.iter_mut().enumerate() {
            *to = if i < n { from[p * steps[0] + i * steps[1]].load() } else { 0.0 };
        }
    }
}

#[inline(always)]
fn pack_whole_rows<A: Float, const WIDTH: usize>(from: &[A], stride: usize, panel: &mut [f32]) {
    for (p, to) in panel.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
        let from = from[p * stride..].first_chunk::<WIDTH>().expect("a whole row of the panel");
        for i in 0..WIDTH {
            to[i] = from[i].load();
        }
    }
}

/// Scratch blocks, in f32 elements, that [`matmul`] holds at once for the product of m x k and k x n.
pub fn scratch<A: Float>([m, n, k]: [usize; 3], threads: usize) -> Vec<usize> {
    if sums_apart::<A>(k) {
        [&[m * n][..], &product_scratch::<f32>(n, k, threads)].concat()
    } else {
        product_scratch::<A>(n, k, threads).to_vec()
    }
}

/// [`scratch`] for [`matmul_acc`].
pub fn scratch_acc([_, n, k]: [usize; 3], threads: usize) -> [usize; 2] {
    product_scratch::<f32>(n, k, threads)
}

/// Whether sums go to f32 scratch first: the sums of several strips must be added up before they are rounded.
fn sums_apart<A: Float>(depth: usize) -> bool {
    depth > STRIP_DEPTH && A::ROUNDS
}

/// [`product_scratch`] of an f32 output that is enough whatever the depth.
pub(super) fn deepest_scratch(n: usize, threads: usize) -> [usize; 2] {
    let cols = Shape::here().cols;
    let packed = (n.next_multiple_of(cols) * STRIP_DEPTH).min(STRIP + cols * STRIP_DEPTH);
    [packed, tile_scratch::<f32>() * threads]
}

/// Elements of the packed strip, and of the tile scratch of all threads.
pub(super) fn product_scratch<O: Float>(n: usize, depth: usize, threads: usize) -> [usize; 2] {
    let (strip, depth) = strip(depth);
    let packed = n.min(strip).next_multiple_of(Shape::here().cols) * depth;
    [packed, tile_scratch::<O>() * threads]
}

/// The largest number of columns of a strip, and its depth.
fn strip(depth: usize) -> (usize, usize) {
    let depth = depth.min(STRIP_DEPTH);
    ((STRIP / depth).next_multiple_of(Shape::here().cols), depth)
}

/// Panels of the left operand, and the sums of a tile if they are rounded.
fn tile_scratch<O: Float>() -> usize {
    ROWS * (DEPTH + if O::ROUNDS { COLS } else { 0 })
}

/// out = a b, plus the bias, rounded.
pub fn matmul<A: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    a: Operand<A>,
    b: Operand<A>,
    bias: Option<&[A]>,
    out: &mut [A],
) {
    let start = bias.map_or(Start::Zero, Start::Bias);
    if sums_apart::<A>(a.cols) {
        let mut sums = pool.take::<f32>(out.len());
        product(workers, pool, a, b, start, sums.as_mut_slice());
        super::elementwise::round(workers, sums.as_slice(), out);
    } else {
        product(workers, pool, a, b, start, out);
    }
}

/// The initial value of a product's sums.
#[derive(Clone, Copy)]
pub(super) enum Start<'a, A> {
    Zero,
    /// One number for each column.
    Bias(&'a [A]),
    /// The output, to which the product is added.
    Output,
}

/// out += a b, in f32.
pub fn matmul_acc<A: Float>(workers: &Workers, pool: &Rc<Pool>, a: Operand<A>, b: Operand<A>, out: &mut [f32]) {
    product(workers, pool, a, b, Start::Output, out);
}

fn product<A: Float, O: Float>(
    workers: &Workers,
    pool: &Rc<Pool>,
    a: Operand<A>,
    b: Operand<A>,
    start: Start<'_, A>,
    out: &mut [O],
) {
    let [mut packed, mut scratch] =
        product_scratch::<O>(b.cols, a.cols, workers.threads()).map(|len| pool.take::<f32>(len));
    product_within(workers, [packed.as_mut_slice(), scratch.as_mut_slice()], a, b, start, out);
}

/// [`product`] in this scratch, of at least [`product_scratch`] elements.
pub(super) fn product_within<A: Float, O: Float>(
    workers: &Workers,
    [packed, scratch]: [&mut [f32]; 2],
    a: Operand<A>,
    b: Operand<A>,
    start: Start<'_, A>,
    out: &mut [O],
) {
    assert_eq!(a.cols, b.rows, "product of {} x {} and {} x {}", a.rows, a.cols, b.rows, b.cols);
    assert!(a.cols > 0, "a product of depth 0");
    let (n, shape) = (b.cols, Shape::here());
    let (strip, depth) = strip(a.cols);
    for left in (0..n).step_by(strip) {
        let cols = left..n.min(left + strip);
        // Tiles of nearly one width, each of whole panels.
        let width = cols.len().div_ceil(cols.len().div_ceil(COLS)).next_multiple_of(shape.cols);
        for from in (0..a.cols).step_by(depth) {
            let deep = from..a.cols.min(from + depth);
            let start = if from > 0 { Start::Output } else { start };
            let strip = Strip { a, b, cols: cols.clone(), deep, width, shape, start };
            strip.pack(workers, packed);
            let scratch = scratch.chunks_mut(tile_scratch::<O>());
            strip.multiply(workers, packed, scratch, out);
        }
    }
}

/// Columns `cols` of the output from the part `deep` of the depth.
struct Strip<'a, A> {
    a: Operand<'a, A>,
    b: Operand<'a, A>,
    cols: Range<usize>,
    deep: Range<usize>,
    /// Columns of a tile.
    width: usize,
    shape: Shape,
    start: Start<'a, A>,
}

impl<A: Float> Strip<'_, A> {
    /// Packs the right operand into panels as deep as the strip.
    fn pack(&self, workers: &Workers, packed: &mut [f32]) {
        let panels = packed.chunks_mut(self.deep.len() * self.shape.cols);
        workers.each(self.cols.clone().step_by(self.shape.cols).zip(panels), |(first, panel)| {
            let cols = first..self.cols.end.min(first + self.shape.cols);
            self.b.t().pack(cols, self.deep.clone(), self.shape.cols, panel);
        });
    }

    /// Computes the tiles, each in its thread's scratch: panels of the left operand, and sums to be rounded.
    fn multiply<'s, O: Float>(
        &self,
        workers: &Workers,
        packed: &[f32],
        scratch: impl Iterator<Item = &'s mut [f32]>,
        out: &mut [O],
    ) {
        let across = widths(self.cols.len(), self.width);
        let tiles = cut_columns(out, self.b.cols, self.cols.start, &across);
        workers.each_with(tiles.into_iter().enumerate(), scratch, |(at, mut tile), scratch| {
            let (top, b) = (at / across.len() * ROWS, at % across.len() * self.width * self.deep.len());
            let (a_packed, sums) = scratch.split_at_mut(ROWS * DEPTH);
            let (rows, cols) = (tile.rows(), tile.cols());
            let left = self.cols.start + at % across.len() * self.width;
            match O::as_f32_tile(&mut tile) {
                Some(tile) => self.tile([top, left], &packed[b..], a_packed, tile),
                None => {
                    let sums = &mut sums[..rows * cols];
                    self.tile([top, left], &packed[b..], a_packed, &mut Tile::whole(sums, rows, cols));
                    (0..rows).for_each(|r| store(&sums[r * cols..][..cols], tile.row(r)));
                }
            }
        });
    }

    /// Computes the tile of the rows `top ..` and the columns `left ..`; `b` are its panels of the right operand.
    fn tile(&self, [top, left]: [usize; 2], b: &[f32], a_packed: &mut [f32], out: &mut Tile<'_, f32>) {
        let (rows, deep) = (top..top + out.rows(), self.deep.len());
        if let Start::Bias(bias) = self.start {
            let bias = &bias[left..left + out.cols()];
            (0..out.rows()).for_each(|row| load(bias, out.row(row)));
        }
        let add = !matches!(self.start, Start::Zero);
        // The depth is split into nearly equal parts: a shallow part would read and write the output for few
        // multiplications.
        let part = deep.div_ceil(deep.div_ceil(DEPTH));
        for from in (0..deep).step_by(part) {
            let depth = part.min(deep - from);
            let a = &mut a_packed[..rows.len().next_multiple_of(self.shape.rows) * depth];
            let first = self.deep.start + from;
            let left = self.a.pack_left(rows.clone(), first..first + depth, self.shape.rows, a);
            let (b, b_step) = (&b[from * self.shape.cols..], deep * self.shape.cols);
            Product { a, left, b, b_step, depth, add: add || from > 0, out }.run();
        }
    }
}

/// Tiles of the columns `left ..` of the output, with the widths `across`.
fn cut_columns<'a, O>(out: &'a mut [O], n: usize, left: usize, across: &[usize]) -> Vec<Tile<'a, O>> {
    let right = n - left - across.iter().sum::<usize>();
    let all = [&[left][..], across, &[right]].concat();
    let tiles = cut(out, n, ROWS, &all).into_iter().enumerate();
    tiles.filter(|(at, _)| (1..all.len() - 1).contains(&(at % all.len()))).map(|(_, tile)| tile).collect()
}
