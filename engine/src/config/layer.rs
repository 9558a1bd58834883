//! The layers of a model, each described by data: what may differ between models, or from layer to layer. A family's
//! file ([`super::family`]) makes the description; parameters, FLOPs and the layers' equations follow from it.

use super::Model;
use super::family::{Family, TensorNames};
use super::names::named;

/// A transformer layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    pub attention: AttentionKind,
    /// Whether each head has a learned sink: one more score in its softmax, without a value.
    pub sinks: bool,
    /// Whether each head of q and k is normed before the rotation.
    pub head_norms: bool,
    pub biases: Biases,
    /// The norms before attention and before the MLP.
    pub norm: NormKind,
    /// Whether what attention and the MLP add is normed too.
    pub post_norms: bool,
    pub feed_forward: FeedForward,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForward {
    Dense(Mlp),
    Experts(Experts),
}

/// A mixture of experts (Shazeer et al. 2017): a router chooses some of the experts for each token, and the layer's
/// output is the sum of theirs, weighted by the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// E: the number of experts.
    pub count: usize,
    /// k: the experts of a token.
    pub per_token: usize,
    pub weights: RouterWeights,
    /// Whether the router's product has a bias.
    pub router_bias: bool,
    /// Each expert.
    pub mlp: Mlp,
}

/// How the router weights the experts of a token, which are those with the largest logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterWeights {
    /// By the softmax over all experts, so that the weights of a token add up to less than 1.
    OfAll,
    /// By the softmax over the chosen experts; the same as `OfAll` divided by its sum over them.
    OfChosen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKind {
    /// To all positions up to the query's own.
    Full,
    /// To the last W of them.
    Window(usize),
}

/// Which products have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// Attention's output.
    pub out: bool,
    /// All of the MLP, or of each expert.
    pub mlp: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm.
    Rms,
    /// RMSNorm whose weights are stored as differences from 1.
    RmsPlusOne,
    /// LayerNorm with a bias.
    Layer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    pub activation: Activation,
    pub intermediate_size: usize,
}

/// The clamp of [`Activation::ClampedSwiGlu`]: gates are at most this, values lie between its negative and it.
pub const SWIGLU_LIMIT: f64 = 7.0;

/// The activation of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// silu(gate) * up.
    SwiGlu,
    /// (up + 1) gate sigmoid(1.702 gate), of a clamped gate and clamped values.
    ClampedSwiGlu,
    /// gelu(gate) * up, with gelu in its tanh form.
    GeGlu,
    /// gelu(up) in its tanh form, without a gate.
    Gelu,
}

named! {
    /// The values of `layer_types`.
    pub enum LayerType {
        Full = "full_attention",
        Sliding = "sliding_attention",
    }
}

impl Layer {
    /// A layer of Llama: full attention, no biases, RMSNorm, SwiGLU.
    pub(super) fn llama(m: &Model) -> Layer {
        Layer {
            attention: AttentionKind::Full,
            sinks: false,
            head_norms: false,
            biases: Biases { qkv: m.attention_bias, out: m.attention_bias, mlp: m.mlp_bias },
            norm: NormKind::Rms,
            post_norms: false,
            feed_forward: FeedForward::Dense(Mlp {
                activation: Activation::SwiGlu,
                intermediate_size: m.intermediate_size,
            }),
        }
    }

    /// The feed-forward layer, or one of its experts.
    pub fn mlp(self) -> Mlp {
        match self.feed_forward {
            FeedForward::Dense(mlp) | FeedForward::Experts(Experts { mlp, .. }) => mlp,
        }
    }

    pub fn experts(self) -> Option<Experts> {
        match self.feed_forward {
            FeedForward::Dense(_) => None,
            FeedForward::Experts(experts) => Some(experts),
        }
    }
}

impl AttentionKind {
    /// The first position that a query at `position` attends to.
    pub fn first(self, position: u32) -> u32 {
        match self {
            AttentionKind::Full => 0,
            AttentionKind::Window(window) => (position + 1).saturating_sub(window as u32),
        }
    }

    /// Twice the mean number of positions that a query attends to in a sequence of `seq` tokens: `seq` without a
    /// window, `2 W - W^2 / seq` with one.
    pub fn span(self, seq: usize) -> usize {
        match self {
            AttentionKind::Window(window) if window < seq => 2 * window - window * window / seq,
            _ => seq,
        }
    }
}

impl Activation {
    /// Rows of the MLP's first product for each row of its second: the gate's and the values'.
    pub fn products(self) -> usize {
        match self {
            Activation::SwiGlu | Activation::ClampedSwiGlu | Activation::GeGlu => 2,
            Activation::Gelu => 1,
        }
    }
}

impl Model {
    /// Layer `l`, counted in the order of the forward pass.
    pub fn layer(&self, l: usize) -> Layer {
        assert!(l < self.num_hidden_layers, "layer {l} of {}", self.num_hidden_layers);
        (Family::of(self.architecture).layer)(self, l)
    }

    /// The layers in the order of the forward pass.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = Layer> + '_ {
        (0..self.num_hidden_layers).map(|l| self.layer(l))
    }

    /// The kind of all norms, the final one too: no family has layers that differ in it.
    pub fn norm_kind(&self) -> NormKind {
        self.layer(0).norm
    }

    /// The activation of all feed-forward layers and experts: likewise.
    pub fn activation(&self) -> Activation {
        self.layer(0).mlp().activation
    }

    /// The numbers of the layers that have experts.
    pub fn expert_layers(&self) -> impl Iterator<Item = usize> + '_ {
        self.layers().enumerate().filter(|(_, layer)| layer.experts().is_some()).map(|(l, _)| l)
    }

    /// E, the same in all layers that have experts; 0 where none has.
    pub fn experts(&self) -> usize {
        self.num_local_experts
    }

    /// The attention of layer `l` by `layer_types`; a layer that is not listed has full attention.
    pub(super) fn attention_by_type(&self, l: usize) -> AttentionKind {
        match (self.layer_types.0.get(l), self.sliding_window) {
            (Some(LayerType::Sliding), Some(window)) => AttentionKind::Window(window),
            _ => AttentionKind::Full,
        }
    }

    /// The factor of the scores q k^T.
    pub fn score_scale(&self) -> f64 {
        (self.query_pre_attn_scalar.unwrap_or(self.head_dim) as f64).powf(-0.5)
    }

    /// The number of learned positions, or `None` where positions are rotary.
    pub fn learned_positions(&self) -> Option<usize> {
        Family::of(self.architecture).learned_positions.then_some(self.max_position_embeddings)
    }

    /// The epsilon of all norms.
    pub fn norm_eps(&self) -> f64 {
        let eps = self.rms_norm_eps.or(self.layer_norm_epsilon);
        eps.expect("every family has one of the two")
    }

    /// The factor of the embedding's output, where there is one. That of a family is a tensor of the activations' type
    /// in transformers, hence `rounded`; that of the key is a number.
    pub fn embedding_factor(&self, rounded: impl Fn(f32) -> f32) -> Option<f32> {
        let of_family = Family::of(self.architecture).embedding_factor.map(|factor| rounded(factor(self) as f32));
        Some(of_family.unwrap_or(self.embedding_scale as f32)).filter(|&factor| factor != 1.0)
    }

    /// The names of the model's tensors in a Hugging Face checkpoint.
    pub fn tensor_names(&self) -> &'static TensorNames {
        &Family::of(self.architecture).tensors
    }
}
