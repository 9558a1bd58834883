//! Parameters and floating-point operations of a model, each formula under its name. A multiply and
//! an add are two operations; the backward pass is twice the forward; nothing is counted for
//! recomputation, norms, rotary embedding, softmax or the lookup of embeddings.

use crate::config::Model;
use crate::inventory::all_tensors;

/// Forward and backward: the forward pass's operations three times.
const PASSES: f64 = 3.0;

/// Every weight once; a tied head is the embedding.
pub fn parameters(model: &Model) -> u64 {
    all_tensors(model).iter().map(|tensor| tensor.len() as u64).sum()
}

/// Per token of a sequence of `seq`: a causal query's dot products counted for the half of the
/// positions that it sees on average. What Megatron-LM counts today.
pub fn model_flops(model: &Model, seq: usize) -> f64 {
    model.num_hidden_layers as f64 * layer_flops(model, seq) + head_flops(model)
}

/// One layer's part of [`model_flops`].
pub fn layer_flops(model: &Model, seq: usize) -> f64 {
    PASSES * (layer_matmul_flops(model) + layer_attention_flops(model, seq) / 2.0)
}

/// The output layer's part of [`model_flops`].
pub fn head_flops(m: &Model) -> f64 {
    PASSES * 2.0 * m.hidden_size as f64 * m.vocab_size as f64
}

/// Per token of a sequence of `seq`: dot products counted for all positions, seen or not. What
/// llm-recipes counts.
pub fn full_flops(model: &Model, seq: usize) -> f64 {
    let layer = layer_matmul_flops(model) + layer_attention_flops(model, seq);
    PASSES * model.num_hidden_layers as f64 * layer + head_flops(model)
}

/// Multiplications of a layer by weights, forward, per token: `2 * (q, k, v, o, gate, up, down)`.
fn layer_matmul_flops(m: &Model) -> f64 {
    let heads = 2 * m.num_attention_heads + 2 * m.num_key_value_heads;
    let attention = m.hidden_size as f64 * (heads * m.head_dim) as f64;
    let mlp = 3.0 * m.hidden_size as f64 * m.intermediate_size as f64;
    2.0 * (attention + mlp)
}

/// `q k^T` and `p v` of a layer, forward, per token: `2 * 2 * seq * heads * head_dim`.
fn layer_attention_flops(m: &Model, seq: usize) -> f64 {
    4.0 * seq as f64 * (m.num_attention_heads * m.head_dim) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Architecture, RopeScaling};

    /// Llama 2 with Swallow's vocabulary.
    fn swallow(hidden: usize, intermediate: usize, layers: usize, heads: usize, kv_heads: usize) -> Model {
        Model {
            architecture: Architecture::Llama,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden / heads,
            vocab_size: 43176,
            max_position_embeddings: 4096,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::Default,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            hf: None,
        }
    }

    /// 7B, 13B and 70B.
    fn three() -> [Model; 3] {
        [swallow(4096, 11008, 32, 32, 32), swallow(5120, 13824, 40, 40, 40), swallow(8192, 28672, 80, 64, 8)]
    }

    fn giga(figures: [f64; 3], digits: usize) -> [String; 3] {
        figures.map(|figure| format!("{:.digits$}", figure / 1e9))
    }

    #[test]
    fn parameters_of_the_three_sizes() {
        assert_eq!(giga(three().map(|m| parameters(&m) as f64), 2), ["6.83", "13.13", "69.16"]);
        let tied = Model { tie_word_embeddings: true, ..three()[0].clone() };
        assert_eq!(parameters(&three()[0]) - parameters(&tied), 43176 * 4096);
    }

    #[test]
    fn operations_of_the_three_sizes() {
        let figures = three().map(|m| model_flops(&m, 4096));
        assert_eq!(giga(figures, 2), ["43.14", "82.49", "428.93"]);
        let figures = three().map(|m| full_flops(&m, 4096));
        assert_eq!(giga(figures, 2), ["46.36", "87.52", "445.04"]);
    }
}
