//! The operations of [`super::Backend`]: the name, cost and scratch of each, declared once. The dry run logs them,
//! plans estimate their time, and `benches/figures` measures it.

use super::{Heads, Scratch};

/// The work of an operation, as a function of the sizes that the dry run logs for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// A matrix product `[m, n, k]`.
    Product(Form),
    /// Causal attention `[T, s, c]` with this number of matrix products, each over the unmasked half of the scores; c
    /// is H d, or more with a soft-cap ([`Heads::timed_cols`]).
    Attention { products: f64 },
    /// A memory-bound elementwise or row-wise op: for each element it moves `acts` activations and `bytes` further
    /// bytes.
    Rows { acts: f64, bytes: f64 },
    /// Like `Rows`, but over the flat shards of gradients and optimizer state.
    Flat { acts: f64, bytes: f64 },
}

/// The form of a product: which operand it transposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// a b^T
    Nt,
    /// a b
    Nn,
    /// a^T b, added to an f32 matrix.
    TnAcc,
}

/// The function of [`Scratch`] that gives the scratch of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Matmul,
    MatmulAcc,
    RmsnormBwd,
    LayernormBwd,
    BiasBwd,
    Grouped,
    GroupedAcc,
    QkNormRopeBwd,
    Attention,
    AttentionBwd,
    EmbedBwd,
    RouteBwd,
    SumSquares,
}

/// The operands of an operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operands {
    /// A matrix with this number of rows and columns.
    Matrix(usize, usize),
    /// A product `[m, n, k]`.
    Product([usize; 3]),
    /// Products `[rows, n, k]` whose rows are shared out over this number of experts.
    Grouped([usize; 3], usize),
    /// The same for sums over the rows of each expert, `[n, k, rows]`.
    GroupedAcc([usize; 3], usize),
    /// This number of rows of `[q | k | v]`, for attention.
    Heads(usize, Heads),
    /// The same, for an op over all their elements.
    Packed(usize, Heads),
}

impl Operands {
    /// `[m, n, k]` of a product, of grouped ones that of one product with the weights of all experts and the mean rows
    /// of one, which has as many operations; `[T, s, c]` of attention, else rows, columns and 1.
    pub fn sizes(self) -> [usize; 3] {
        match self {
            Operands::Matrix(rows, cols) => [rows, cols, 1],
            Operands::Product(sizes) => sizes,
            Operands::GroupedAcc([n, k, rows], experts) => [experts * n, k, rows.div_ceil(experts)],
            Operands::Grouped([rows, n, k], experts) => [rows.div_ceil(experts), experts * n, k],
            Operands::Heads(rows, h) => [rows, h.span, h.timed_cols()],
            Operands::Packed(rows, h) => [rows, h.qkv_cols(), 1],
        }
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $op:ident, $name:literal, $work:expr, $takes:ident;)*) => {
        /// An operation of the backend.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Op {
            $($(#[$doc])* $op,)*
        }

        impl Op {
            pub const ALL: &[Op] = &[$(Op::$op),*];

            /// The name in tables, logs and files of measured op times.
            pub fn name(self) -> &'static str {
                match self { $(Op::$op => $name),* }
            }

            pub fn work(self) -> Work {
                match self { $(Op::$op => $work),* }
            }

            fn takes(self) -> Takes {
                match self { $(Op::$op => Takes::$takes),* }
            }
        }
    };
}

/// A row op that moves `acts` activations, and `bytes` bytes of f32 or other types, per element.
const fn rows(acts: f64, bytes: f64) -> Work {
    Work::Rows { acts, bytes }
}

const fn flat(acts: f64, bytes: f64) -> Work {
    Work::Flat { acts, bytes }
}

// Sorted by name; tables list the ops in this order.
ops! {
    // g, master, m and v are read; the last three and the weights are written.
    Adamw, "adamw", flat(1.0, 28.0), Nothing;
    Add, "add", rows(3.0, 0.0), Nothing;
    AddBias, "add_bias", rows(2.0, 0.0), Nothing;
    AddRmsnorm, "add_rmsnorm", rows(4.0, 0.0), Nothing;
    // Sizes are those of o, which is read and written.
    AddSinks, "add_sinks", rows(2.0, 0.0), Nothing;
    Attention, "attention", Work::Attention { products: 2.0 }, Attention;
    AttentionBwd, "attention_bwd", Work::Attention { products: 5.0 }, AttentionBwd;
    BiasBwd, "bias_bwd", rows(1.0, 0.0), BiasBwd;
    Checksum, "checksum", flat(0.0, 4.0), Nothing;
    // Sizes are as for geglu.
    ClampedSwigluWeighted, "clamped_swiglu_weighted", rows(1.5, 0.0), Nothing;
    ClampedSwigluWeightedBwd, "clamped_swiglu_weighted_bwd", rows(2.5, 0.0), Nothing;
    Copy, "copy", rows(2.0, 0.0), Nothing;
    Embed, "embed", rows(2.0, 0.0), Nothing;
    EmbedBwd, "embed_bwd", rows(1.0, 8.0), EmbedBwd;
    Fetch, "fetch", rows(0.0, 4.0), Nothing;
    // Sizes are those of [gate | up], which is twice as wide as the product.
    Geglu, "geglu", rows(1.5, 0.0), Nothing;
    GegluBwd, "geglu_bwd", rows(2.5, 0.0), Nothing;
    Gelu, "gelu", rows(2.0, 0.0), Nothing;
    GeluBwd, "gelu_bwd", rows(3.0, 0.0), Nothing;
    // Sizes are those of the rows' columns that have a bias.
    GroupedBiasBwd, "grouped_bias_bwd", rows(1.0, 0.0), Nothing;
    GroupedBiasDot, "grouped_bias_dot", rows(1.0, 0.0), Nothing;
    GroupedNn, "grouped_nn", Work::Product(Form::Nn), Grouped;
    GroupedNt, "grouped_nt", Work::Product(Form::Nt), Grouped;
    GroupedTnAcc, "grouped_tn_acc", Work::Product(Form::TnAcc), GroupedAcc;
    Judge, "judge", flat(0.0, 4.0), Nothing;
    Layernorm, "layernorm", rows(2.0, 0.0), Nothing;
    LayernormBwd, "layernorm_bwd", rows(4.0, 0.0), LayernormBwd;
    MatmulNn, "matmul_nn", Work::Product(Form::Nn), Matmul;
    MatmulNt, "matmul_nt", Work::Product(Form::Nt), Matmul;
    MatmulTnAcc, "matmul_tn_acc", Work::Product(Form::TnAcc), MatmulAcc;
    Pick, "pick", flat(0.0, 8.0), Nothing;
    Put, "put", flat(0.0, 8.0), Nothing;
    QkNormRope, "qk_norm_rope", rows(2.0, 0.0), Nothing;
    QkNormRopeBwd, "qk_norm_rope_bwd", rows(3.0, 0.0), QkNormRopeBwd;
    Rmsnorm, "rmsnorm", rows(2.0, 0.0), Nothing;
    RmsnormBwd, "rmsnorm_bwd", rows(3.0, 0.0), RmsnormBwd;
    RmsnormBwdAdd, "rmsnorm_bwd_add", rows(4.0, 0.0), RmsnormBwd;
    RmsnormRecompute, "rmsnorm_recompute", rows(2.0, 0.0), Nothing;
    Rope, "rope", rows(2.0, 0.0), Nothing;
    RopeBwd, "rope_bwd", rows(2.0, 0.0), Nothing;
    Round, "round", rows(1.0, 4.0), Nothing;
    Route, "route", rows(0.0, 4.0), Nothing;
    RouteBwd, "route_bwd", rows(0.0, 8.0), RouteBwd;
    // Activations are read, logits in f32 are written.
    RouterLogits, "router_logits", Work::Product(Form::Nt), MatmulAcc;
    Scale, "scale", rows(2.0, 0.0), Nothing;
    // Sizes are those of o and do, which are read.
    SinksBwd, "sinks_bwd", rows(2.0, 0.0), Nothing;
    SortChoices, "sort_choices", rows(0.0, 16.0), Nothing;
    // Sizes are those of the rows that are added up.
    SumRows, "sum_rows", rows(1.0, 0.0), Nothing;
    SumSquares, "sum_squares", flat(0.0, 4.0), SumSquares;
    // Sizes are as for geglu.
    Swiglu, "swiglu", rows(1.5, 0.0), Nothing;
    SwigluBwd, "swiglu_bwd", rows(2.5, 0.0), Nothing;
    SwigluWeighted, "swiglu_weighted", rows(1.5, 0.0), Nothing;
    SwigluWeightedBwd, "swiglu_weighted_bwd", rows(2.5, 0.0), Nothing;
    TakeRows, "take_rows", rows(2.0, 0.0), Nothing;
    Upload, "upload", rows(0.0, 4.0), Nothing;
    Widen, "widen", rows(1.0, 4.0), Nothing;
    Write, "write", rows(0.0, 4.0), Nothing;
    XentCombine, "xent_combine", rows(0.0, 8.0), Nothing;
    XentGrad, "xent_grad", rows(2.0, 0.0), Nothing;
    XentStats, "xent_stats", rows(1.0, 0.0), Nothing;
    XentTotals, "xent_totals", rows(0.0, 4.0), Nothing;
    Zero, "zero", rows(0.0, 4.0), Nothing;
}

impl Form {
    pub fn op(self) -> Op {
        match self {
            Form::Nt => Op::MatmulNt,
            Form::Nn => Op::MatmulNn,
            Form::TnAcc => Op::MatmulTnAcc,
        }
    }
}

impl Op {
    /// Floating-point operations. For causal attention only the unmasked positions count.
    pub fn flops(self, [a, b, c]: [usize; 3]) -> f64 {
        let product = a as f64 * b as f64 * c as f64;
        match self.work() {
            Work::Product(_) => 2.0 * product,
            Work::Attention { products } => products * product,
            Work::Rows { .. } | Work::Flat { .. } => 0.0,
        }
    }

    /// Bytes that are read and written if an activation has `act` bytes. Attention counts none, since it is
    /// compute-bound.
    pub fn bytes(self, [rows, cols, depth]: [usize; 3], act: usize) -> f64 {
        match self.work() {
            Work::Product(form) => {
                // The result is written once as activations, or read and written as f32 sums.
                let out = if form == Form::TnAcc { 8 } else { act };
                (depth * (rows + cols) * act + rows * cols * out) as f64
            }
            Work::Attention { .. } => 0.0,
            Work::Rows { acts, bytes } | Work::Flat { acts, bytes } => {
                (acts * act as f64 + bytes) * rows as f64 * cols as f64
            }
        }
    }

    /// Sizes in bytes of the blocks that the op holds at once besides its result.
    pub fn scratch(self, on: Operands, scratch: &dyn Scratch) -> Vec<usize> {
        match (self.takes(), on) {
            (Takes::Nothing, _) => Vec::new(),
            (Takes::Matmul, Operands::Product(sizes)) => scratch.matmul(sizes),
            (Takes::MatmulAcc, Operands::Product(sizes)) => scratch.matmul_acc(sizes),
            (Takes::Grouped, Operands::Grouped([_, n, k], _)) => scratch.grouped(n, k),
            (Takes::GroupedAcc, Operands::GroupedAcc([n, k, _], _)) => scratch.grouped_acc(n, k),
            (Takes::RmsnormBwd, Operands::Matrix(rows, cols)) => scratch.rmsnorm_bwd(rows, cols),
            (Takes::LayernormBwd, Operands::Matrix(rows, cols)) => scratch.layernorm_bwd(rows, cols),
            (Takes::BiasBwd, Operands::Matrix(rows, cols)) => scratch.bias_bwd(rows, cols),
            (Takes::QkNormRopeBwd, Operands::Packed(rows, h)) => scratch.qk_norm_rope_bwd(rows, h),
            (Takes::Attention, Operands::Heads(rows, h)) => scratch.attention(rows, h),
            (Takes::AttentionBwd, Operands::Heads(rows, h)) => scratch.attention_bwd(rows, h),
            (Takes::EmbedBwd, Operands::Matrix(rows, cols)) => scratch.embed_bwd(rows, cols),
            (Takes::RouteBwd, Operands::Matrix(rows, cols)) => scratch.route_bwd(rows, cols),
            (Takes::SumSquares, Operands::Matrix(rows, cols)) => scratch.sum_squares(rows * cols),
            (takes, on) => panic!("{} takes {takes:?} and was called on {on:?}", self.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_order_and_each_is_of_one_op() {
        assert!(Op::ALL.is_sorted_by(|a, b| a.name() < b.name() && a < b));
    }

    #[test]
    fn operations_and_bytes_by_hand() {
        // y [8, 4] = x [8, 2] w [4, 2]^T: 2 x 8 x 4 x 2; x, w and y in bf16.
        assert_eq!(Op::MatmulNt.flops([8, 4, 2]), 128.0);
        assert_eq!(Op::MatmulNt.bytes([8, 4, 2], 2), (2 * (16 + 8 + 32)) as f64);
        // dw [4, 2] += dy^T x, in f32: read and written.
        assert_eq!(Op::MatmulTnAcc.bytes([4, 2, 8], 2), (2 * (32 + 16) + 8 * 8) as f64);
        // 16 positions of one sequence, 3 columns: q k^T and p v of half of the 16 x 16 scores, each 2 x 3 operations
        // per score.
        assert_eq!(Op::Attention.flops([16, 16, 3]), 2.0 * 2.0 * 3.0 * 128.0);
        assert_eq!(Op::AttentionBwd.flops([16, 16, 3]), 2.5 * Op::Attention.flops([16, 16, 3]));
        // A window sees fewer positions, and a soft-cap takes the time of 64 more columns a head.
        let full = Heads::full(4, 2, 128, 64);
        let sizes = |h| Operands::Heads(64, h).sizes();
        assert_eq!(sizes(full), [64, 64, 512]);
        assert_eq!(sizes(Heads { span: 30, cap: Some(50.0), ..full }), [64, 30, 768]);
        // x and r are read, h and y written.
        assert_eq!(Op::AddRmsnorm.bytes([10, 10, 1], 2), 4.0 * 2.0 * 100.0);
        // [gate | up] of 10 columns each: both read, one written.
        assert_eq!(Op::Swiglu.bytes([1, 20, 1], 2), 2.0 * 30.0);
        assert_eq!(Op::Adamw.bytes([100, 1, 1], 2), 3000.0);
    }
}
