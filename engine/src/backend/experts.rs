//! The operands of the ops of layers with experts. T tokens choose k of E experts each; the T k choices, sorted by
//! expert, are rows that are multiplied by the weights of their expert.

use super::{Acc, Act, Backend, Tensor};
use crate::config::{RouterWeights, SWIGLU_LIMIT};
use std::ops::Range;

/// How the router chooses and weights the experts of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Router {
    /// k.
    pub per_token: usize,
    pub weights: RouterWeights,
}

/// The experts of each token: those with its k largest logits, the largest first, of equal ones that with the lowest
/// number first. A logit that is not a number counts as the smallest.
pub struct Choices<B: Backend> {
    /// `[T, k]`.
    pub experts: Tensor<B, u32>,
    /// `[T, k]`.
    pub weights: Acc<B>,
}

/// The choices sorted by expert; those of one expert are in the order of their tokens.
pub struct Sorted<B: Backend> {
    /// The choice in each place, `[T k, 1]`: token times k, plus its number among the token's.
    pub order: Tensor<B, u32>,
    /// The place of each choice, `[T, k]`.
    pub places: Tensor<B, u32>,
    /// The number of choices of each expert, `[1, E]`.
    pub counts: Tensor<B, u32>,
}

/// The groups that the rows of a matrix are in: consecutive rows belong to the same expert. The matrix has the sorted
/// rows from number `first` on.
pub struct Groups<'a, B: Backend> {
    /// The number of sorted rows of each expert, `[1, E]`.
    pub counts: &'a Tensor<B, u32>,
    pub first: usize,
}

/// A bias for each expert, of n consecutive columns of rows that are grouped by expert. A tensor-parallel rank adds its
/// own columns of a bias that is shared out.
pub struct GroupBias<'a, B: Backend> {
    /// `[1, E n]`, expert after expert.
    pub bias: &'a Act<B>,
    /// The column of the rows that the first element is added to.
    pub first: usize,
    /// A factor of the bias for each row, `[R, 1]`; 1 where there is none.
    pub weights: Option<&'a Acc<B>>,
}

impl<B: Backend> GroupBias<'_, B> {
    /// The columns of a matrix of `width` that biases of `experts` experts are added to.
    pub fn columns(&self, experts: usize, width: usize) -> Range<usize> {
        let columns = self.first..self.first + self.bias.len() / experts;
        assert_eq!(self.bias.len() % experts, 0, "{} biases of {experts} experts", self.bias.len());
        assert!(columns.end <= width, "biases of the columns {columns:?} of {width}");
        columns
    }
}

/// The gated activation of GPT-OSS's experts: `y = (up + 1) gate sigmoid(SLOPE gate)`, of gates that are at most
/// `LIMIT` and values between `-LIMIT` and `LIMIT`. Where a clamp holds, the gradient is zero.
pub struct ClampedGate;

impl ClampedGate {
    pub const SLOPE: f32 = 1.702;
    pub const LIMIT: f32 = SWIGLU_LIMIT as f32;
}

/// The auxiliary losses of a router, as sums over sequences and tokens of which the trainer takes means.
pub struct Balance<'a, B: Backend> {
    /// Rows of one sequence, S. The balancing loss of a sequence is `E sum over e of (n_e / S) P_e` (Fedus et al.
    /// 2021): n_e its choices of expert e, P_e its mean probability of e by the softmax over all experts.
    pub seq: usize,
    /// Factors of the gradients of the balancing loss of each sequence, and of log(sum exp)^2 of each token (Zoph et
    /// al. 2022), times the counted targets of the step: gradients are divided by their number later.
    pub factors: [f32; 2],
    /// The number of counted targets of the step, `[1, 1]`; at least 1 is taken.
    pub targets: &'a Acc<B>,
}
