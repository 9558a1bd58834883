//! Shapes of matrix multiplications (GEMMs), and the operands as cuBLASLt sees them.
//!
//! cuBLASLt is column-major and the engine row-major: our matrix `[rows, cols]` is its `cols` by `rows` matrix. So it
//! is asked for the transposed product, out^T = b^T a^T, and our `b` is its first operand.

use crate::machine::Fault;
use crate::tensor::View;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The layout of the operands, which are row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// out `[m, n]` = a `[m, k]` b^T, with b `[n, k]`; all bf16.
    Nt,
    /// The same plus bias `[n]` in every row, which is added before the sum is rounded.
    NtBias,
    /// The same as `Nt`, but out is f32.
    NtF32,
    /// out `[m, n]` = a `[m, k]` b, with b `[k, n]`; all bf16.
    Nn,
    /// out `[m, n]` += a^T b, with a `[k, m]` and b `[k, n]` in bf16, out in f32.
    TnAcc,
}

/// One matrix multiplication. `Ord` only gives lists a canonical order.
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

    /// The product without its bias, if it has one.
    pub(crate) fn without_bias(self) -> Option<Product> {
        (self.form == Form::NtBias).then_some(Product { form: Form::Nt, ..self })
    }

    fn shapes(&self) -> String {
        let Product { m, n, k, .. } = *self;
        format!("m x n x k = {m} x {n} x {k}")
    }

    /// Asserts that the views of a, b and out have these shapes.
    pub(crate) fn check(&self, views: [View; 3]) {
        assert_eq!(views.map(|view| view.len()), self.lens(), "elements of a, b and out of {self}");
    }

    /// A fault of this multiplication.
    pub(crate) fn fault(&self, what: String) -> Fault {
        Fault { kernel: self.form.name(), what, shapes: self.shapes() }
    }

    /// The column-major operands of cuBLASLt.
    pub(crate) fn operands(&self) -> Operands {
        let Product { form, m, n, k } = *self;
        let of = |cols, rows| Matrix { rows: cols, cols: rows };
        match form {
            Form::Nt | Form::NtBias | Form::NtF32 => {
                Operands { transposed: [true, false], b: of(k, n), a: of(k, m), out: of(n, m) }
            }
            Form::Nn => Operands { transposed: [false, false], b: of(n, k), a: of(k, m), out: of(n, m) },
            Form::TnAcc => Operands { transposed: [false, true], b: of(n, k), a: of(m, k), out: of(n, m) },
        }
    }
}

impl Form {
    /// Whether out is f32.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Form::NtF32 | Form::TnAcc)
    }

    /// Bytes of an element of out.
    fn out_size(self) -> usize {
        if self.is_wide() { 4 } else { 2 }
    }

    fn name(self) -> &'static str {
        match self {
            Form::Nt => "matmul a b^T",
            Form::NtBias => "matmul a b^T + bias",
            Form::NtF32 => "matmul a b^T in f32",
            Form::Nn => "matmul a b",
            Form::TnAcc => "matmul out += a^T b",
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.form.name(), self.shapes())
    }
}

/// Column-major matrices without padding between columns. `b` is the first operand, `a` the second.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Operands {
    /// Whether the first and the second operand are transposed.
    pub transposed: [bool; 2],
    pub b: Matrix,
    pub a: Matrix,
    pub out: Matrix,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub rows: usize,
    pub cols: usize,
}

/// A matrix multiplication with the alignment of its addresses, which an algorithm may require.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub product: Product,
    /// The alignment of a, b and out in bytes, at most [`ALIGNED`]. The library has no setting for the alignment of a
    /// bias. It is read with the columns of out, so the alignment of out is the smaller one of the two.
    pub align: [u32; 3],
}

/// The most alignment that an algorithm requires: the 16 bytes of the widest load.
pub(crate) const ALIGNED: u32 = 16;

impl Key {
    pub fn new(product: Product, views: [View; 3]) -> Key {
        Key { product, align: views.map(|view| 1 << view.at().trailing_zeros().min(ALIGNED.ilog2())) }
    }

    /// The same with a bias.
    pub fn with_bias(product: Product, views: [View; 3], bias: View) -> Key {
        let Key { align: [a, b, out], .. } = Key::new(product, views);
        let [of_bias, ..] = Key::new(product, [bias; 3]).align;
        Key { product, align: [a, b, out.min(of_bias)] }
    }

    /// Blocks are always fully aligned.
    pub fn aligned(product: Product) -> Key {
        Key { product, align: [ALIGNED; 3] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_swapped_for_cublaslt() {
        let of = |rows, cols| Matrix { rows, cols };
        let nt = Product::new(Form::Nt, 2, 3, 5).operands();
        assert_eq!(nt, Operands { transposed: [true, false], b: of(5, 3), a: of(5, 2), out: of(3, 2) });
        assert_eq!(Product::new(Form::NtBias, 2, 3, 5).operands(), nt);
        assert_eq!(Product::new(Form::NtF32, 2, 3, 5).operands(), nt);
        let nn = Product::new(Form::Nn, 2, 3, 5).operands();
        assert_eq!(nn, Operands { transposed: [false, false], b: of(3, 5), a: of(5, 2), out: of(3, 2) });
        let tn = Product::new(Form::TnAcc, 2, 3, 5).operands();
        assert_eq!(tn, Operands { transposed: [false, true], b: of(3, 5), a: of(2, 5), out: of(3, 2) });
    }

    #[test]
    fn gradients_of_weights_are_f32() {
        assert_eq!(Product::new(Form::Nt, 12, 5, 7).bytes(), [168, 70, 120]);
        assert_eq!(Product::new(Form::NtF32, 12, 5, 7).bytes(), [168, 70, 240]);
        assert_eq!(Product::new(Form::TnAcc, 12, 5, 7).bytes(), [168, 70, 240]);
    }

    #[test]
    fn alignment_follows_from_the_addresses() {
        let product = Product::new(Form::TnAcc, 1, 1, 1);
        // SAFETY: nothing reads through these views.
        let view = |at| unsafe { View::new(at, 1) };
        let key = |a, b, out| Key::new(product, [view(a), view(b), view(out)]);
        assert_eq!(key(4096, 256 + 16, 16), Key::aligned(product));
        assert_eq!(key(2, 8, 20).align, [2, 8, 4]);
        assert_eq!(key(4, 6, 16).align, [4, 2, 16]);
        let with_bias = |out, bias| Key::with_bias(product, [view(16), view(32), view(out)], view(bias)).align;
        assert_eq!([with_bias(32, 64), with_bias(8, 64), with_bias(32, 66)], [[16; 3], [16, 16, 8], [16, 16, 2]]);
    }
}
