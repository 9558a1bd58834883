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

/// The `m` rows of a and of out as `blocks` blocks of `m / blocks` rows that lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rows {
    pub blocks: usize,
    /// Rows of a from the beginning of one block to that of the next.
    pub a_step: usize,
    /// The same of out.
    pub out_step: usize,
}

/// One product. `Ord` has no meaning but that lists of products have one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Product {
    pub form: Form,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub rows: Rows,
}

impl Product {
    /// Of whole matrices.
    pub fn new(form: Form, m: usize, n: usize, k: usize) -> Product {
        assert!(m > 0 && n > 0 && k > 0, "a product of {m} x {n} x {k}");
        Product { form, m, n, k, rows: Rows { blocks: 1, a_step: m, out_step: m } }
    }

    /// The same, of rows that lie in blocks. Only where rows of `a` become rows of `out`.
    pub fn of(self, rows: Rows) -> Product {
        let Rows { blocks, a_step, out_step } = rows;
        assert!(self.form != Form::TnAcc || blocks == 1, "{blocks} blocks of rows in a product that sums over rows");
        assert!(blocks > 0 && self.m.is_multiple_of(blocks), "{} rows in {blocks} blocks", self.m);
        let block = self.m / blocks;
        assert!(blocks == 1 || (a_step >= block && out_step >= block), "blocks of {block} rows overlap: {rows:?}");
        if blocks == 1 || (a_step == block && out_step == block) {
            return Product::new(self.form, self.m, self.n, self.k);
        }
        Product { rows, ..self }
    }

    /// Elements from the first to the last of a, b and out: as long as the views must be.
    pub fn lens(&self) -> [usize; 3] {
        let Product { form, m, n, k, rows: Rows { blocks, a_step, out_step } } = *self;
        let span = |step: usize, cols: usize| ((blocks - 1) * step + m / blocks) * cols;
        match form {
            Form::Nt | Form::Nn => [span(a_step, k), n * k, span(out_step, n)],
            Form::TnAcc => [k * m, k * n, m * n],
        }
    }

    /// Bytes of a, b and out.
    pub fn bytes(&self) -> [usize; 3] {
        let [a, b, out] = self.lens();
        [2 * a, 2 * b, self.form.out_size() * out]
    }

    /// Its shapes in words.
    pub(super) fn shapes(&self) -> String {
        let Product { m, n, k, rows: Rows { blocks, a_step, out_step }, .. } = *self;
        let apart = match blocks {
            1 => String::new(),
            _ => format!(" in {blocks} blocks of rows, {a_step} apart in a and {out_step} in out"),
        };
        format!("m x n x k = {m} x {n} x {k}{apart}")
    }

    /// Holds views to these shapes.
    pub(super) fn hold(&self, views: [View; 3]) {
        assert_eq!(views.map(|view| view.len()), self.lens(), "elements of a, b and out of {self}");
    }

    /// The same, as cuBLASLt is told of it.
    pub(super) fn operands(&self) -> Operands {
        let Product { form, m, n, k, rows: Rows { blocks, a_step, out_step } } = *self;
        let of = |cols, rows| Matrix { rows: cols, cols: rows, stride: 0 };
        let block = m / blocks;
        let apart = |cols, step| Matrix { rows: cols, cols: block, stride: step * cols };
        match form {
            Form::Nt => Operands { turned: [true, false], b: of(k, n), a: apart(k, a_step), out: apart(n, out_step) },
            Form::Nn => Operands { turned: [false, false], b: of(n, k), a: apart(k, a_step), out: apart(n, out_step) },
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
    /// Elements from one of a batch to the next; 0 where all of the batch take the same.
    pub stride: usize,
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
        let of = |rows, cols| Matrix { rows, cols, stride: 0 };
        let whole = |rows, cols| Matrix { rows, cols, stride: rows * cols };
        let nt = Product::new(Form::Nt, 2, 3, 5).operands();
        assert_eq!(nt, Operands { turned: [true, false], b: of(5, 3), a: whole(5, 2), out: whole(3, 2) });
        let nn = Product::new(Form::Nn, 2, 3, 5).operands();
        assert_eq!(nn, Operands { turned: [false, false], b: of(3, 5), a: whole(5, 2), out: whole(3, 2) });
        let tn = Product::new(Form::TnAcc, 2, 3, 5).operands();
        assert_eq!(tn, Operands { turned: [false, true], b: of(3, 5), a: of(2, 5), out: of(3, 2) });
    }

    #[test]
    fn blocks_reach_from_the_first_row_to_the_last() {
        let whole = Product::new(Form::Nt, 12, 5, 7);
        assert_eq!((whole.lens(), whole.bytes()), ([84, 35, 60], [168, 70, 120]));
        let apart = whole.of(Rows { blocks: 3, a_step: 4, out_step: 10 });
        assert_eq!(apart.lens(), [84, 35, (2 * 10 + 4) * 5]);
        assert_eq!(apart.operands().a, Matrix { rows: 7, cols: 4, stride: 28 });
        assert_eq!(apart.operands().out, Matrix { rows: 5, cols: 4, stride: 50 });
        assert!(apart.to_string().contains("3 blocks") && !whole.to_string().contains("block"), "{apart}");
        // Blocks without gaps are no blocks.
        assert_eq!(whole.of(Rows { blocks: 3, a_step: 4, out_step: 4 }), whole);
        assert_eq!(whole.of(Rows { blocks: 1, a_step: 99, out_step: 0 }), whole);
    }

    #[test]
    fn what_cannot_be_is_a_bug_with_its_numbers() {
        let whole = Product::new(Form::Nn, 12, 5, 7);
        let rows = |blocks, a_step, out_step| Rows { blocks, a_step, out_step };
        for (product, rows, said) in [
            (whole, rows(5, 9, 9), "12 rows in 5 blocks"),
            (whole, rows(3, 3, 4), "overlap"),
            (whole, rows(3, 4, 3), "overlap"),
            (Product { form: Form::TnAcc, ..whole }, rows(2, 6, 6), "sums over rows"),
        ] {
            let panic = std::panic::catch_unwind(|| product.of(rows)).unwrap_err();
            let text = panic.downcast_ref::<String>().unwrap();
            assert!(text.contains(said), "{text}");
        }
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
