//! Products of small matrices on one thread, by the `gemm` crate.

use crate::cpu::tiles::Tile;

/// A matrix to be read, or its transpose.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> Mat<'a> {
    /// The first `cols` of every `stride` elements.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let end = if rows * cols == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(cols <= stride && end <= data.len(), "{rows} x {cols} by {stride} of {} elements", data.len());
        Mat { data, rows, cols, row_step: stride, col_step: 1 }
    }

    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }
}

/// out = keep out + a b, on this thread; `keep` is 0 or 1, and 0 reads nothing.
pub fn gemm(out: &mut Tile<'_, f32>, keep: f32, a: Mat<'_>, b: Mat<'_>) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!((out.rows(), out.cols(), b.rows), (m, n, k), "product of {m} x {k} and {} x {n}", b.rows);
    let stride = out.stride() as isize;
    // SAFETY: `Mat::new` and `Tile` hold that their rows and columns are inside their memory, the shapes
    // agree (asserted), and `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride,
            keep != 0.0,
            a.data.as_ptr(),
            a.col_step as isize,
            a.row_step as isize,
            b.data.as_ptr(),
            b.col_step as isize,
            b.row_step as isize,
            keep,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
