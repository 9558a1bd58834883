//! What is multiplied, as integers: shapes, the matrices that cuBLASLt is told of, and how long the views are.
//!
//! cuBLASLt counts down columns, the engine along rows: a row-major matrix `[rows, cols]` is to it one of `cols` by
//! `rows`, so it is asked for the transposed product, out^T = b^T a^T, and our `b` is its first operand.

use crate::args::View;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Which product, of row-major matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// out `[m, n]` = a `[m, k]` b^T, b being `[n, k]`; all bf16.
    Nt,
    /// out `[m, n]` = a `[m, k]` b, b being `[k, n]`; all bf16.
    Nn,
    /// out `[m, n]` += a^T b, a being `[k, m]` and b `[k, n]`, both bf16, and out f32.
    TnAcc,
}

/// One product. `Ord` has no meaning but that lists of products have one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    pub form: Form,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl Product {
    pub fn new(form: Form, m: usize, n: usize, k: usize) -> Product {
        assert!(m > 0 && n > 0 && k > 0, "a product of {m} x {n} x {k}");
        Product { form, m, n, k }
    }

    /// Elements of a, b and out.
    pub fn lens(&self) -> [usize; 3] {
        let Product { m, n, k, .. } = *self;
        [m * k, n * k, m * n]
    }

    /// Bytes of a, b and out.
    pub fn bytes(&self) -> [usize; 3] {
        let [a, b, out] = self.lens();
        [2 * a, 2 * b, self.form.out_size() * out]
    }

    /// Its shapes in words.
    pub(super) fn shapes(&self) -> String {
        let Product { m, n, k, .. } = *self;
        format!("m x n x k = {m} x {n} x {k}")
    }

    /// Holds views to these shapes.
    pub(super) fn hold(&self, views: [View; 3]) {
        assert_eq!(views.map(|view| view.len()), self.lens(), "elements of a, b and out of {self}");
    }

    /// The same, as cuBLASLt is told of it.
    pub(super) fn operands(&self) -> Operands {
        let Product { form, m, n, k } = *self;
        let of = |cols, rows| Matrix { rows: cols, cols: rows };
        match form {
            Form::Nt => Operands { turned: [true, false], b: of(k, n), a: of(k, m), out: of(n, m) },
            Form::Nn => Operands { turned: [false, false], b: of(n, k), a: of(k, m), out: of(n, m) },
            Form::TnAcc => Operands { turned: [false, true], b: of(n, k), a: of(m, k), out: of(n, m) },
        }
    }
}

impl Form {
    /// Bytes of an element of out.
    pub(super) fn out_size(self) -> usize {
        if self == Form::TnAcc { 4 } else { 2 }
    }

    /// What it is called where it fails.
    pub(super) fn name(self) -> &'static str {
        match self {
            Form::Nt => "the product a b^T",
            Form::Nn => "the product a b",
            Form::TnAcc => "the product out + a^T b",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.form.name(), self.shapes())
    }
}

/// Column-major matrices: `b` is the first operand, `a` the second, and elements of a column have no gap to the next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Operands {
    /// Whether the first and the second operand are transposed.
    pub turned: [bool; 2],
    pub b: Matrix,
    pub a: Matrix,
    pub out: Matrix,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    pub rows: usize,
    pub cols: usize,
}

/// A product with what an algorithm must know of the addresses that it works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub product: Product,
    /// The alignment of a, b and out in bytes, at most [`ALIGNED`].
    pub align: [u32; 3],
}

/// As much alignment as algorithms ask for: 16 bytes are what the widest load takes.
pub(super) const ALIGNED: u32 = 16;

impl Key {
    pub fn new(product: Product, views: [View; 3]) -> Key {
        Key { product, align: views.map(|view| 1 << view.at().trailing_zeros().min(ALIGNED.ilog2())) }
    }

    /// Where every view is a block or a matrix of its own.
    pub fn aligned(product: Product) -> Key {
        Key { product, align: [ALIGNED; 3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_told_of_with_its_operands_swapped() {
        let of = |rows, cols| Matrix { rows, cols };
        let nt = Product::new(Form::Nt, 2, 3, 5).operands();
        assert_eq!(nt, Operands { turned: [true, false], b: of(5, 3), a: of(5, 2), out: of(3, 2) });
        let nn = Product::new(Form::Nn, 2, 3, 5).operands();
        assert_eq!(nn, Operands { turned: [false, false], b: of(3, 5), a: of(5, 2), out: of(3, 2) });
        let tn = Product::new(Form::TnAcc, 2, 3, 5).operands();
        assert_eq!(tn, Operands { turned: [false, true], b: of(3, 5), a: of(2, 5), out: of(3, 2) });
    }

    #[test]
    fn gradients_of_weights_are_f32() {
        assert_eq!(Product::new(Form::Nt, 12, 5, 7).bytes(), [168, 70, 120]);
        assert_eq!(Product::new(Form::TnAcc, 12, 5, 7).bytes(), [168, 70, 240]);
    }

    #[test]
    fn alignment_is_what_the_addresses_have() {
        let product = Product::new(Form::TnAcc, 1, 1, 1);
        // SAFETY: nothing reads through these views.
        let view = |at| unsafe { View::new(at, 1) };
        let key = |a, b, out| Key::new(product, [view(a), view(b), view(out)]);
        assert_eq!(key(4096, 256 + 16, 16), Key::aligned(product));
        assert_eq!(key(2, 8, 20).align, [2, 8, 4]);
        assert_eq!(key(4, 6, 16).align, [4, 2, 16]);
    }
}
