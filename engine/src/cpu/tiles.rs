//! A matrix cut into tiles that threads write concurrently. Tiles come only from cutting, so that no two share an
//! element.

use std::marker::PhantomData;

/// A rectangle of a row-major matrix, to write to.
pub struct Tile<'a, T> {
    at: *mut T,
    rows: usize,
    cols: usize,
    /// Elements from a row to the next.
    stride: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is an exclusive borrow of its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for Tile<'_, T> {}

/// Cuts `[.., cols]` into tiles of at most `tile_rows` rows and of the column counts `widths`, in row-major order.
pub fn cut<'a, T>(matrix: &'a mut [T], cols: usize, tile_rows: usize, widths: &[usize]) -> Vec<Tile<'a, T>> {
    assert_eq!(widths.iter().sum::<usize>(), cols, "tiles of {widths:?} columns");
    let rows = matrix.len().checked_div(cols).unwrap_or(0);
    assert_eq!(matrix.len(), rows * cols, "a matrix of {} elements in rows of {cols}", matrix.len());
    let at = matrix.as_mut_ptr();
    let mut tiles = Vec::with_capacity(rows.div_ceil(tile_rows) * widths.len());
    for top in (0..rows).step_by(tile_rows) {
        let mut left = 0;
        for &width in widths {
            // SAFETY: `top < rows` and `left <= cols`, so this is inside the matrix.
            let at = unsafe { at.add(top * cols + left) };
            let rows = tile_rows.min(rows - top);
            tiles.push(Tile { at, rows, cols: width, stride: cols, owner: PhantomData });
            left += width;
        }
    }
    tiles
}

/// Widths that cut `cols` columns into tiles of `width`, the last one narrower.
pub fn widths(cols: usize, width: usize) -> Vec<usize> {
    (0..cols).step_by(width).map(|at| width.min(cols - at)).collect()
}

impl<'a, T> Tile<'a, T> {
    /// A whole matrix as one tile.
    pub fn whole(matrix: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(matrix.len(), rows * cols, "a matrix of {} elements as {rows} x {cols}", matrix.len());
        Tile { at: matrix.as_mut_ptr(), rows, cols, stride: cols, owner: PhantomData }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.at
    }

    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of a tile of {}", self.rows);
        // SAFETY: the row is inside the tile, whose elements this borrow holds alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(row * self.stride), self.cols) }
    }

    /// Prefetches the cache lines of columns `left .. left + cols` of a row.
    #[inline(always)]
    pub fn prefetch(&self, row: usize, left: usize, cols: usize) {
        for col in (left..left + cols).step_by((64 / size_of::<T>()).max(1)) {
            let at = self.at.wrapping_add(row * self.stride + col);
            // SAFETY: a prefetch reads nothing that the program can see, wherever it points.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast())
            };
            #[cfg(not(target_arch = "x86_64"))]
            let _ = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_matrix_once() {
        let mut matrix = vec![0u32; 5 * 7];
        for (n, tile) in cut(&mut matrix, 7, 2, &[3, 0, 4]).iter_mut().enumerate() {
            for row in 0..tile.rows() {
                tile.row(row).iter_mut().for_each(|x| *x += 1 + n as u32);
            }
        }
        let row = |a, b| [a, a, a, b, b, b, b];
        assert_eq!(matrix, [row(1, 3), row(1, 3), row(4, 6), row(4, 6), row(7, 9)].concat());
    }

    #[test]
    fn widths_end_with_what_is_left() {
        assert_eq!(widths(7, 3), [3, 3, 1]);
        assert_eq!(widths(6, 3), [3, 3]);
        assert!(widths(0, 3).is_empty());
    }
}
