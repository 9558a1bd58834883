//! Parameters and floating-point operations of a model, each formula under its name. A multiply and
//! an add are two operations; the backward pass is twice the forward; nothing is counted for
//! norms, rotary embedding, softmax or the lookup of embeddings.

use crate::config::{Layer, Model, Named, Recompute};
use crate::model::param_specs::{self, ExpertShare, TensorSpec, Unit};

/// The factor for forward and backward together, relative to the forward pass.
const PASSES: f64 = 3.0;

/// The number of parameters; a tied head is counted as the embedding only. One expert is counted for all of its layer:
/// a search asks for the number thousands of times.
pub fn parameters(model: &Model) -> u64 {
    let one_expert = ExpertShare { rank: 0, ranks: model.experts().max(1) };
    let count = |unit: Unit| {
        let times = if matches!(unit, Unit::Experts(_)) { one_expert.ranks } else { 1 };
        let tensors = param_specs::tensors(model, unit, one_expert);
        (times * tensors.iter().map(TensorSpec::len).sum::<usize>()) as u64
    };
    let units = param_specs::units(model).into_iter();
    units.flat_map(|unit| param_specs::with_experts(model, unit)).map(count).sum()
}

/// The number of parameters that a token uses: all but those of the experts that are not its own.
pub fn active_parameters(model: &Model) -> u64 {
    let idle = |layer: Layer| {
        let experts = layer.experts()?;
        let (d, f, products) = (model.hidden_size, experts.mlp.intermediate_size, experts.mlp.activation.products());
        let biases = if layer.biases.mlp { products * f + d } else { 0 };
        let each = (products + 1) * d * f + biases;
        Some(((experts.count - experts.per_token) * each) as u64)
    };
    parameters(model) - model.layers().filter_map(idle).sum::<u64>()
}

/// Model FLOPs per token of a sequence of `seq` tokens. A causal query's dot products are counted for the positions
/// that it attends to on average: half of them, or fewer where a layer has a window.
pub fn model_flops(model: &Model, seq: usize) -> f64 {
    PASSES * (linear_flops(model) + seen_flops(model, seq)) + head_flops(model)
}

/// One layer's part of [`model_flops`], the mean of all layers.
pub fn layer_flops(model: &Model, seq: usize) -> f64 {
    PASSES * (linear_flops(model) + seen_flops(model, seq)) / model.num_hidden_layers as f64
}

/// Operations of all layers, forward, per token: of the products with weights. This sum and the next two are exact,
/// since the counts are whole numbers far below 2^53.
fn linear_flops(m: &Model) -> f64 {
    m.layers().map(|layer| layer_matmul_flops(m, layer)).sum()
}

/// Operations of `q k^T` and `p v` of all layers, forward, per token, for all positions.
fn score_flops(m: &Model, seq: usize) -> f64 {
    m.num_hidden_layers as f64 * layer_attention_flops(m, seq)
}

/// [`score_flops`] for the positions that are attended to.
fn seen_flops(m: &Model, seq: usize) -> f64 {
    m.layers().map(|layer| layer_attention_flops(m, layer.attention.span(seq)) / 2.0).sum()
}

/// The output layer's part of [`model_flops`].
pub fn head_flops(m: &Model) -> f64 {
    PASSES * 2.0 * m.hidden_size as f64 * m.vocab_size as f64
}

/// The formulas that count operations. A figure in TFLOPS or a share of a peak means nothing without the name of its
/// formula: the same tokens per second are 134 TFLOPS by one formula and 115 by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Formula {
    /// Causal attention counted for its unmasked half, nothing for recomputation: what Megatron-LM counts today.
    Model,
    /// Attention counted for all positions, nothing for recomputation: what llm-recipes counts.
    Full,
    /// `3.5 (8 + 6 f/h) l h^2 (1 + s/6h + V/16lh)`: what the fork of Megatron-LM that trained Swallow logged from
    /// December 2023 on. It counts half a forward pass more for recomputation, and treats grouped-query attention as
    /// multi-head attention.
    Swallow2023,
    /// `96 l h^2 (1 + s/6h + V/16lh)` (Narayanan et al. 2021, appendix): GPT's layers with full recomputation.
    Narayanan2021,
    /// A fit, without a source, to the totals that the Swallow paper prints: grouped heads reduce the scores and not
    /// the projections, and half of the attention's forward pass is counted once more.
    PaperTotals,
    /// `Model`, plus recomputation: the layers if the run recomputes them, and the product of attention (q k^T) that
    /// flash attention's backward pass always recomputes.
    Hardware,
}

impl Named for Formula {
    const NAMES: &'static [(&'static str, Self)] = &[
        ("model", Formula::Model),
        ("full", Formula::Full),
        ("swallow2023", Formula::Swallow2023),
        ("narayanan2021", Formula::Narayanan2021),
        ("paper-totals", Formula::PaperTotals),
        ("hardware", Formula::Hardware),
    ];
}

impl Formula {
    /// Operations per token of a sequence of `seq` tokens, forward and backward.
    pub fn per_token(self, m: &Model, seq: usize, recompute: Recompute) -> f64 {
        let (linear, scores) = (linear_flops(m), score_flops(m, seq));
        match self {
            Formula::Model => model_flops(m, seq),
            Formula::Full => PASSES * (linear + scores) + head_flops(m),
            Formula::Swallow2023 => gpt(m, seq, 3.5 * (8.0 + 6.0 * m.intermediate_size as f64 / m.hidden_size as f64)),
            Formula::Narayanan2021 => gpt(m, seq, 96.0),
            Formula::PaperTotals => {
                let every_head = Model { num_key_value_heads: m.num_attention_heads, ..m.clone() };
                let grouped = scores * m.num_key_value_heads as f64 / m.num_attention_heads as f64;
                PASSES * linear_flops(&every_head) + (PASSES + 0.5) * grouped + head_flops(m)
            }
            Formula::Hardware => {
                let seen = seen_flops(m, seq);
                let again = if recompute == Recompute::Full { linear + seen } else { 0.0 };
                model_flops(m, seq) + again + seen / 2.0
            }
        }
    }
}

/// `each l h^2 (1 + s/6h + V/16lh)`.
fn gpt(m: &Model, seq: usize, each: f64) -> f64 {
    let (l, h) = (m.num_hidden_layers as f64, m.hidden_size as f64);
    each * l * h * h * (1.0 + seq as f64 / (6.0 * h) + m.vocab_size as f64 / (16.0 * l * h))
}

/// Operations of a layer's matrix products with weights, forward, per token: `2 * (q, k, v, o, gate, up, down)`, with
/// experts the last three of those that a token uses, and the router.
fn layer_matmul_flops(m: &Model, layer: Layer) -> f64 {
    let heads = 2 * m.num_attention_heads + 2 * m.num_key_value_heads;
    let attention = m.hidden_size as f64 * (heads * m.head_dim) as f64;
    let products = (layer.mlp().activation.products() + 1) as f64;
    let mlp = products * m.hidden_size as f64 * layer.mlp().intermediate_size as f64;
    let [used, routed] = layer.experts().map_or([1, 0], |experts| [experts.per_token, experts.count]);
    2.0 * (attention + used as f64 * mlp + (routed * m.hidden_size) as f64)
}

/// Operations of `q k^T` and `p v` of a layer, forward, per token, for so many positions: `2 * 2 * positions * heads *
/// head_dim`.
fn layer_attention_flops(m: &Model, positions: usize) -> f64 {
    4.0 * positions as f64 * (m.num_attention_heads * m.head_dim) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Architecture, AttentionKind, Config};
    use std::path::Path;

    /// Llama 2 with Swallow's vocabulary.
    fn swallow(hidden: usize, intermediate: usize, layers: usize, heads: usize, kv_heads: usize) -> Model {
        Model {
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: hidden / heads,
            vocab_size: 43176,
            ..Model::tiny()
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
        let figures = |formula: Formula| three().map(|m| formula.per_token(&m, 4096, Recompute::Selective));
        for (formula, expected) in [
            (Formula::Model, ["43.14", "82.49", "428.93"]),
            (Formula::Full, ["46.36", "87.52", "445.04"]),
            (Formula::Swallow2023, ["53.82", "101.83", "592.58"]),
            (Formula::Narayanan2021, ["61.19", "115.41", "560.47"]),
        ] {
            assert_eq!(giga(figures(formula), 2), expected, "{formula:?}");
        }
    }

    /// A window counts the positions that queries see, against a count of them one by one; the first of a sequence see
    /// fewer.
    #[test]
    fn a_window_counts_what_is_seen() {
        for (window, seq) in [(1, 64), (16, 64), (63, 64), (64, 64), (90, 64)] {
            let kind = AttentionKind::Window(window);
            let seen: u32 = (0..seq).map(|position| position + 1 - kind.first(position)).sum();
            let mean = 2.0 * seen as f64 / seq as f64;
            // A sequence without a window sees (seq + 1) / 2 on average, which is counted as seq / 2.
            assert!((kind.span(seq as usize) as f64 - mean).abs() <= 1.0, "{window} of {seq}: {mean}");
        }
        let windowed = Model { architecture: Architecture::Mistral, sliding_window: Some(1024), ..three()[0].clone() };
        let [full, less] = [&three()[0], &windowed].map(|m| model_flops(m, 4096));
        // 2 x 1024 - 1024^2 / 4096 of 4096 positions.
        let scores = PASSES * score_flops(&windowed, 4096) / 2.0;
        assert_eq!(full - less, scores * (1.0 - 1792.0 / 4096.0));
    }

    /// 25,000 steps of 1024 sequences: the totals that the paper prints, and the exact ones.
    #[test]
    fn totals_of_the_paper() {
        let totals = |formula: Formula| {
            let total = |m| 25_000.0 * 1024.0 * 4096.0 * formula.per_token(&m, 4096, Recompute::Selective);
            three().map(total).map(|total| format!("{total:.1e}"))
        };
        assert_eq!(totals(Formula::PaperTotals), ["5.0e21", "9.4e21", "5.0e22"]);
        assert_eq!(totals(Formula::Full), ["4.9e21", "9.2e21", "4.7e22"]);
        assert_eq!(totals(Formula::Model), ["4.5e21", "8.6e21", "4.5e22"]);
    }

    /// The totals that the models' authors give: 46.7B with 12.9B active, and 30.5B with 3.3B active. Those of GPT-OSS
    /// leave the embedding out of the active ones: 20.91B with 3.61B, and 116.83B with 5.13B.
    #[test]
    fn experts_that_a_token_does_not_use_are_not_counted() {
        let read = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name);
            Config::read(&path, &[]).unwrap().model
        };
        let [mixtral, qwen] = ["swallow-mx-8x7b.toml", "qwen3-30b-a3b.toml"].map(read);
        let billions = |m: &Model| [parameters(m), active_parameters(m)].map(|n| format!("{:.1}", n as f64 / 1e9));
        assert_eq!(
            (billions(&mixtral), billions(&qwen)),
            (["46.7", "12.9"].map(Into::into), ["30.5", "3.4"].map(Into::into))
        );
        let oss = ["gpt-oss-20b.toml", "gpt-oss-120b.toml"].map(|name| {
            let m = read(name);
            let active = active_parameters(&m) - (m.vocab_size * m.hidden_size) as u64;
            [parameters(&m), active].map(|n| format!("{:.2}", n as f64 / 1e9))
        });
        assert_eq!(oss, [["20.91", "3.61"], ["116.83", "5.13"]].map(|pair| pair.map(String::from)));
        // Without attention and the head, a token costs two operations for each weight that it uses, thrice.
        let m = &mixtral;
        let weights = 2.0 * (m.hidden_size * 3 * 14336) as f64 + (m.hidden_size * 8) as f64;
        let attention = (m.hidden_size * (2 * 32 + 2 * 8) * 128) as f64;
        assert_eq!(linear_flops(m), 32.0 * 2.0 * (weights + attention));
    }

    #[test]
    fn hardware_counts_what_is_computed_again() {
        let [m, _, _] = three();
        let by = |recompute| Formula::Hardware.per_token(&m, 4096, recompute);
        let (some, all) = (by(Recompute::Selective), by(Recompute::Full));
        assert_eq!(by(Recompute::None), some);
        let forward = model_flops(&m, 4096) / PASSES - head_flops(&m) / PASSES;
        assert!((all - some - forward).abs() < 1.0, "{all} {some} {forward}");
        assert_eq!(giga([some, all, 0.0], 2)[0], "43.68");
    }
}
