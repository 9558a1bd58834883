//! Products of matrices: what cuBLASLt is asked for.

use super::Cuda;
use super::shapes::view;
use crate::blas::{Form, Product};
use engine::backend::{Act, Elem, Tensor};

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
}
