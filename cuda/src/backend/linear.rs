//! Products of matrices: what cuBLASLt is asked for.

use super::Cuda;
use super::shapes::view;
use crate::blas::{Form, Product, Rows};
use engine::backend::{Act, Backend, Blocks, Elem, Tensor};

impl Cuda {
    /// `out` is made anew, or added to, as the form says.
    pub(super) fn product<T: Elem>(&self, form: Form, a: &Act<Self>, b: &Act<Self>, out: &Tensor<Self, T>) {
        let (m, n, k) = match form {
            Form::Nt => (a.rows(), b.rows(), a.cols()),
            Form::Nn => (a.rows(), b.cols(), a.cols()),
            Form::TnAcc => (a.cols(), b.cols(), a.rows()),
        };
        let depth = if form == Form::Nt { b.cols() } else { b.rows() };
        assert_eq!((depth, out.shape()), (k, (m, n)), "the product {form:?} of {:?} and {:?}", a.shape(), b.shape());
        self.note(self.0.blas().run(Product::new(form, m, n, k), view(a), view(b), view(out)));
    }

    /// a b^T, whose rows become the rows `rows` of out.
    pub(super) fn product_to(&self, a: &Act<Self>, b: &Act<Self>, rows: Blocks, out: &Act<Self>) {
        let (m, n, k) = (a.rows(), b.rows(), a.cols());
        assert_eq!((rows.rows(), b.cols(), out.cols()), (m, k, n), "a product into {rows:?}");
        let product = Product::new(Form::Nt, m, n, k).of(into_blocks(rows));
        let to = out.lend(rows.first * n, rows.end() - rows.first, n);
        self.note(self.0.blas().run(product, view(a), view(b), view(&to)));
    }

    /// The rows `rows` of a, times b^T.
    pub(super) fn product_of(&self, a: &Act<Self>, rows: Blocks, b: &Act<Self>) -> Act<Self> {
        let (m, n, k) = (rows.rows(), b.rows(), a.cols());
        assert_eq!(b.cols(), k, "columns of {:?} and {:?}", a.shape(), b.shape());
        let out = self.alloc(m, n);
        let product = Product::new(Form::Nt, m, n, k).of(of_blocks(rows));
        let from = a.lend(rows.first * k, rows.end() - rows.first, k);
        self.note(self.0.blas().run(product, view(&from), view(b), view(&out)));
        out
    }
}

/// Rows that lie together become those of blocks.
pub(super) fn into_blocks(rows: Blocks) -> Rows {
    Rows { blocks: rows.count, a_step: rows.each, out_step: rows.step }
}

/// Rows of blocks become such that lie together.
pub(super) fn of_blocks(rows: Blocks) -> Rows {
    Rows { blocks: rows.count, a_step: rows.step, out_step: rows.each }
}
