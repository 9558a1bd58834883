//! The maths of a model, layer by layer: weights, saved tensors, forward, backward. There is no autograd.
//!
//! Shapes: T tokens of a micro-batch, T/tp those of this rank under sequence parallelism, D hidden
//! size, H query heads, G key/value heads and F intermediate size of this rank, d head size.

pub mod attention;
pub mod block;
pub mod dispatch;
pub mod embedding;
pub mod experts;
pub mod feed_forward;
pub mod head;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod region;
pub mod rope;
pub mod rotary;
pub mod router;

use crate::backend::Backend;
use crate::config::Activation;
use region::Region;

/// The context that all layers of a stage share for one micro-batch.
pub struct Ctx<'a, B: Backend> {
    pub b: &'a B,
    /// Enters and leaves the tensor-parallel region.
    pub region: &'a Region<B>,
    pub norms: norm::Norms,
    pub activation: Activation,
    /// Present if the model has experts.
    pub moe: Option<moe::Shape<'a, B>>,
    /// The factor of the embedding's output.
    pub embedding_scale: Option<f32>,
    /// The id of the first vocabulary row that this rank holds.
    pub vocab_start: usize,
    /// The first of the hidden columns whose biases of experts this rank adds.
    pub hidden_start: usize,
    /// The first learned position that this rank holds.
    pub positions_start: usize,
}
